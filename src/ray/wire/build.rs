//! Writing frames with the flatbuffer builder.

use flatbuffers::{FlatBufferBuilder, Push, TableUnfinishedWIPOffset, WIPOffset};

use super::frame;
use super::list::{Element, List};
use super::table::Field;

/// Builds frames and keeps its memory between them: one per connection or per core, never shared.
pub struct Encoder {
    fbb: FlatBufferBuilder<'static>,
    /// Offsets of a vector's strings or tables, which have to be written before the vector.
    offsets: Vec<WIPOffset<Part>>,
}

/// Anything already written that a field or a vector can point to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Part;

/// The table being written; nothing else can be written before [`Encoder::end`].
pub(super) struct Open(WIPOffset<TableUnfinishedWIPOffset>);

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Encoder")
    }
}

impl Default for Encoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Encoder {
    /// Room for every message without lists; lists grow it once.
    const START_BYTES: usize = 1024;

    /// An encoder with memory for messages of usual size.
    pub fn new() -> Self {
        Self { fbb: FlatBufferBuilder::with_capacity(Self::START_BYTES), offsets: Vec::new() }
    }

    /// Writes a string of any bytes, as Ray does for ids and protobuf blobs.
    pub(super) fn string(&mut self, bytes: &[u8]) -> WIPOffset<Part> {
        WIPOffset::new(self.fbb.create_byte_string(bytes).value())
    }

    /// Writes an id. The nil id becomes an empty string: that is what Ray's clients send for an unknown id.
    pub(super) fn id_or_nil(&mut self, id: &[u8]) -> WIPOffset<Part> {
        let nil = id.iter().all(|&byte| byte == 0xff);
        self.string(if nil { &[] } else { id })
    }

    /// Writes a byte vector.
    pub(super) fn byte_vector(&mut self, bytes: &[u8]) -> WIPOffset<Part> {
        WIPOffset::new(self.fbb.create_vector(bytes).value())
    }

    /// Writes a vector of scalars or structs.
    pub(super) fn vector<P>(&mut self, items: impl ExactSizeIterator<Item = P> + DoubleEndedIterator) -> WIPOffset<Part>
    where
        P: Push,
        P::Output: 'static,
    {
        WIPOffset::new(self.fbb.create_vector_from_iter(items).value())
    }

    /// Writes each element with `write`, then the vector that points to them.
    pub(super) fn vector_of<'a, T: Element<'a>>(
        &mut self,
        list: List<'a, T>,
        mut write: impl FnMut(&mut Self, T) -> WIPOffset<Part>,
    ) -> WIPOffset<Part> {
        let mut offsets = std::mem::take(&mut self.offsets);
        offsets.extend(list.iter().map(|element| write(self, element)));
        let vector = self.fbb.create_vector_from_iter(offsets.drain(..));
        self.offsets = offsets;
        WIPOffset::new(vector.value())
    }

    /// Starts a table. Write what its fields point to before.
    pub(super) fn start(&mut self) -> Open {
        Open(self.fbb.start_table())
    }

    /// Adds a field to the open table.
    pub(super) fn add<P: Push>(&mut self, field: Field, value: P) {
        self.fbb.push_slot_always(4 + 2 * field.0, value);
    }

    /// Adds a field to the open table, unless it has its default, which readers assume.
    pub(super) fn add_unless_default<P: Push + PartialEq + Default>(&mut self, field: Field, value: P) {
        self.fbb.push_slot(4 + 2 * field.0, value, P::default());
    }

    /// Ends a table.
    pub(super) fn end(&mut self, open: Open) -> WIPOffset<Part> {
        WIPOffset::new(self.fbb.end_table(open.0).value())
    }

    /// Appends the frame around the root table to `out` and makes the encoder ready for the next one.
    pub(super) fn finish(&mut self, root: WIPOffset<Part>, message_type: i64, out: &mut Vec<u8>) {
        self.fbb.finish_minimal(root);
        let body = self.fbb.finished_data();
        frame::write_header(out, message_type, body.len());
        out.extend_from_slice(body);
        self.fbb.reset();
    }
}
