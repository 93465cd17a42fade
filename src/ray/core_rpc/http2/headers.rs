//! Header blocks (HPACK, RFC 7541), in both directions.
//!
//! A gRPC client repeats itself: after the first calls of a method, the block of every further one is the same few bytes, which name
//! entries of a table that no longer changes. So what such a block means is [remembered](Blocks), and looked up by its bytes. Any
//! other block is decoded by `loona-hpack`.

use std::borrow::Cow;

use http::HeaderMap;
use loona_hpack::Decoder;

use super::frames::{ErrorCode, Fault};

/// Size of the table that we let a peer build: HPACK's own default, because we announce no other.
const TABLE_BYTES: usize = 4096;

/// Blocks that are remembered on one connection: the methods that a core answers itself, with and without a deadline.
const MAX_KNOWN: usize = 8;

/// A longer block is not remembered.
const MAX_KNOWN_BYTES: usize = 1024;

/// What matters of a request's headers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestHead<'a> {
    /// The method: `:path`.
    pub path: &'a [u8],
    /// The first `authorization`.
    pub authorization: Option<&'a [u8]>,
}

/// Reads the header blocks of a connection. `H` is what its user makes of a request's head.
pub struct Blocks<H> {
    decoder: Decoder<'static>,
    known: Vec<(Box<[u8]>, H)>,
}

impl<H: Clone> Default for Blocks<H> {
    fn default() -> Self {
        let mut decoder = Decoder::new();
        decoder.set_max_allowed_table_size(TABLE_BYTES);
        Self { decoder, known: Vec::new() }
    }
}

impl<H: Clone> Blocks<H> {
    /// Reads a block. `None`: it is no request's, because it names no method.
    ///
    /// # Errors
    /// A block that is none. The table is of no more use then, and neither is the connection.
    pub fn read(&mut self, block: &[u8], judge: impl FnOnce(RequestHead<'_>) -> H) -> Result<Option<H>, Fault> {
        if let Some((_, head)) = self.known.iter().find(|(known, _)| **known == *block) {
            return Ok(Some(head.clone()));
        }
        let changes = changes_table(block)?;
        if changes {
            self.known.clear();
        }
        let (mut path, mut authorization) = (None, None);
        let keep = |value: Cow<'_, [u8]>, slot: &mut Option<Vec<u8>>| {
            slot.get_or_insert_with(|| value.into_owned());
        };
        let decoded = self.decoder.decode_with_cb(block, |name, value| match &*name {
            b":path" => keep(value, &mut path),
            b"authorization" => keep(value, &mut authorization),
            _ => {}
        });
        decoded.map_err(|error| Fault::new(ErrorCode::Compression, format!("a header block is none: {error}")))?;
        let Some(path) = path else {
            return Ok(None);
        };
        let head = judge(RequestHead { path: &path, authorization: authorization.as_deref() });
        if !changes && block.len() <= MAX_KNOWN_BYTES {
            if self.known.len() == MAX_KNOWN {
                self.known.remove(0);
            }
            self.known.push((block.into(), head.clone()));
        }
        Ok(Some(head))
    }
}

/// True where reading a block changes the table, or where that can't be told from a glance at its fields.
fn changes_table(block: &[u8]) -> Result<bool, Fault> {
    let mut rest = block;
    let mut changes = false;
    while let Some(first) = rest.first() {
        let (prefix_bits, is_literal) = match first.leading_zeros() {
            // A field of the table.
            0 => (7, false),
            // A literal that the table gets.
            1 => (6, true),
            // A new size of the table.
            2 => (5, false),
            // A literal, and that's all.
            _ => (4, true),
        };
        changes |= matches!(first.leading_zeros(), 1 | 2);
        let index = take_integer(&mut rest, prefix_bits)?;
        if is_literal {
            if index == 0 {
                skip_string(&mut rest)?;
            }
            skip_string(&mut rest)?;
        }
    }
    Ok(changes)
}

fn cut_off() -> Fault {
    Fault::new(ErrorCode::Compression, "a header block ends within a field")
}

/// Takes an integer of HPACK, whose first byte has so many bits of it (RFC 7541, 5.1).
fn take_integer(rest: &mut &[u8], prefix_bits: u32) -> Result<usize, Fault> {
    let (first, mut tail) = rest.split_first().ok_or_else(cut_off)?;
    let most = (1usize << prefix_bits) - 1;
    let mut value = usize::from(*first) & most;
    if value == most {
        for shift in [0, 7, 14, 21] {
            let (byte, behind) = tail.split_first().ok_or_else(cut_off)?;
            tail = behind;
            value += usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                *rest = tail;
                return Ok(value);
            }
        }
        return Err(Fault::new(ErrorCode::Compression, "a number in a header block is longer than five bytes"));
    }
    *rest = tail;
    Ok(value)
}

fn skip_string(rest: &mut &[u8]) -> Result<(), Fault> {
    let length = take_integer(rest, 7)?;
    *rest = rest.get(length..).ok_or_else(cut_off)?;
    Ok(())
}

/// `:status: 200` of HPACK's static table.
const STATUS_200: u8 = 0x88;
/// A literal that the table gets, whose name is `content-type` of the static table.
const CONTENT_TYPE_NEW: u8 = 0x40 | 31;
const GRPC: &[u8] = b"application/grpc";
/// A literal that the table gets, with a name of its own.
const LITERAL_NEW: u8 = 0x40;
const GRPC_STATUS: &[u8] = b"grpc-status";
/// Number of the first entry behind the static table: the newest one.
const FIRST_DYNAMIC: u8 = 62;
/// Both fields of [`ReplyHeaders`] in the peer's table (RFC 7541, 4.1: 32 bytes beside name and value).
const REPLY_TABLE_BYTES: u32 = (32 + 12 + 16) + (32 + 11 + 1);

/// Writes the header blocks of replies. The two fields that every good reply has are put into the peer's table with the first.
#[derive(Debug, Default)]
pub struct ReplyHeaders {
    /// Fields put there, and after how many others.
    content_type: Option<u8>,
    ok: Option<u8>,
    entries: u8,
    /// The peer keeps no table that would hold them.
    no_table: bool,
    /// It has to be told that its table is empty before the next block.
    tell_empty: bool,
}

impl ReplyHeaders {
    /// The peer's table has this size now, in bytes as HPACK counts them.
    pub fn table_size(&mut self, size_bytes: u32) {
        if size_bytes < REPLY_TABLE_BYTES && !self.no_table {
            *self = Self { no_table: true, tell_empty: true, ..Self::default() };
        }
    }

    /// The block that a reply with a message begins with.
    pub fn begin(&mut self, out: &mut Vec<u8>) {
        self.begin_block(out);
        out.push(STATUS_200);
        self.content_type(out);
    }

    /// The block that a good reply ends with.
    pub fn end(&mut self, out: &mut Vec<u8>) {
        self.begin_block(out);
        if let Some(place) = self.ok {
            out.push(self.indexed(place));
            return;
        }
        let name = if self.no_table { 0 } else { LITERAL_NEW };
        out.push(name);
        write_string(out, GRPC_STATUS);
        write_string(out, b"0");
        self.ok = self.added();
    }

    /// The only block of a reply without a message.
    pub fn only(&mut self, out: &mut Vec<u8>, status: &HeaderMap) {
        self.begin_block(out);
        out.push(STATUS_200);
        self.content_type(out);
        for (name, value) in status {
            // A literal, and that's all.
            out.push(0);
            write_string(out, name.as_str().as_bytes());
            write_string(out, value.as_bytes());
        }
    }

    fn begin_block(&mut self, out: &mut Vec<u8>) {
        if std::mem::take(&mut self.tell_empty) {
            // A table of the size 0.
            out.push(0x20);
        }
    }

    fn content_type(&mut self, out: &mut Vec<u8>) {
        if let Some(place) = self.content_type {
            out.push(self.indexed(place));
            return;
        }
        match self.no_table {
            false => out.push(CONTENT_TYPE_NEW),
            // The same name, as a number that doesn't fit into four bits.
            true => out.extend_from_slice(&[0x0f, 31 - 15]),
        }
        write_string(out, GRPC);
        self.content_type = self.added();
    }

    fn added(&mut self) -> Option<u8> {
        (!self.no_table).then(|| {
            self.entries += 1;
            self.entries
        })
    }

    fn indexed(&self, place: u8) -> u8 {
        0x80 | (FIRST_DYNAMIC + self.entries - place)
    }
}

/// A string as it is, after its length.
fn write_string(out: &mut Vec<u8>, text: &[u8]) {
    match text.len() {
        short @ ..127 => out.push(short as u8),
        long => {
            out.push(127);
            let mut left = long - 127;
            while left >= 128 {
                out.push(left as u8 | 0x80);
                left >>= 7;
            }
            out.push(left as u8);
        }
    }
    out.extend_from_slice(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(decoder: &mut Decoder<'_>, block: &[u8]) -> Vec<(String, String)> {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        decoder.decode(block).unwrap().into_iter().map(|(name, value)| (text(name), text(value))).collect()
    }

    fn block(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut out = Vec::new();
        write(&mut out);
        out
    }

    fn field(name: &str, value: &str) -> (String, String) {
        (name.to_owned(), value.to_owned())
    }

    #[test]
    fn the_fields_of_replies_are_in_the_peers_table_after_the_first() {
        let (mut headers, mut peer) = (ReplyHeaders::default(), Decoder::new());
        let head = [field(":status", "200"), field("content-type", "application/grpc")];
        for turn in 0..3 {
            let begin = block(|out| headers.begin(out));
            assert_eq!(begin.len() == 2, turn > 0);
            assert_eq!(decoded(&mut peer, &begin), head);
            // A second reply may begin before the first has ended.
            assert_eq!(decoded(&mut peer, &block(|out| headers.begin(out))), head);
            let end = block(|out| headers.end(out));
            assert_eq!(end.len() == 1, turn > 0);
            assert_eq!(decoded(&mut peer, &end), [field("grpc-status", "0")]);
        }
    }

    #[test]
    fn a_peer_without_a_table_gets_every_field_in_full() {
        for early in [true, false] {
            let (mut headers, mut peer) = (ReplyHeaders::default(), Decoder::new());
            if !early {
                decoded(&mut peer, &block(|out| headers.begin(out)));
            }
            headers.table_size(0);
            for _ in 0..3 {
                let head = decoded(&mut peer, &block(|out| headers.begin(out)));
                assert_eq!(head[1], field("content-type", "application/grpc"));
                assert_eq!(decoded(&mut peer, &block(|out| headers.end(out))), [field("grpc-status", "0")]);
            }
        }
    }

    #[test]
    fn a_status_travels_with_a_message_of_any_length() {
        for length in [0, 126, 127, 128, 254, 255, 1000, 100_000] {
            let (mut headers, mut peer) = (ReplyHeaders::default(), Decoder::new());
            let mut status = HeaderMap::new();
            status.insert("grpc-status", "8".parse().unwrap());
            status.insert("grpc-message", "x".repeat(length).parse().unwrap());
            let fields = decoded(&mut peer, &block(|out| headers.only(out, &status)));
            assert_eq!(fields[2], field("grpc-status", "8"));
            assert_eq!(fields[3], field("grpc-message", &"x".repeat(length)));
        }
    }

    /// Reads a block, and says what it names and whether it had to be judged.
    fn read(blocks: &mut Blocks<(Vec<u8>, Option<Vec<u8>>)>, block: &[u8]) -> (String, Option<String>, bool) {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let mut judged = false;
        let (path, token) = blocks
            .read(block, |head| {
                judged = true;
                (head.path.to_vec(), head.authorization.map(<[u8]>::to_vec))
            })
            .unwrap()
            .unwrap();
        (text(path), token.map(text), judged)
    }

    #[test]
    fn what_a_block_means_is_remembered_until_the_table_changes() {
        let new_path = |path: &str| block(|out| (out.push(0x40 | 4), write_string(out, path.as_bytes())).1);
        let mut blocks = Blocks::default();
        assert_eq!(read(&mut blocks, &new_path("/a")), ("/a".to_owned(), None, true));
        let newest = [0x80 | 62];
        assert_eq!(read(&mut blocks, &newest), ("/a".to_owned(), None, true));
        assert_eq!(read(&mut blocks, &newest), ("/a".to_owned(), None, false));
        let with_token = block(|out| {
            out.extend_from_slice(&newest);
            out.extend_from_slice(&[0x0f, 23 - 15]);
            write_string(out, b"Bearer x");
        });
        assert_eq!(read(&mut blocks, &with_token), ("/a".to_owned(), Some("Bearer x".to_owned()), true));
        assert!(!read(&mut blocks, &with_token).2);
        assert_eq!(read(&mut blocks, &new_path("/b")).0, "/b");
        assert_eq!(read(&mut blocks, &newest), ("/b".to_owned(), None, true), "the same byte means another method now");
        assert_eq!(read(&mut blocks, &[0x80 | 63]).0, "/a");
    }

    #[test]
    fn a_block_that_is_none_is_a_fault_wherever_it_is_cut() {
        let whole = block(|out| {
            out.push(0x40);
            write_string(out, b":path");
            write_string(out, &[b'x'; 200]);
        });
        for length in 1..whole.len() {
            let mut blocks = Blocks::<()>::default();
            let fault = blocks.read(&whole[..length], |_| ()).unwrap_err();
            assert_eq!(fault.code, ErrorCode::Compression, "{fault}");
        }
        for bad in [&[0x80][..], &[0xff, 0x80, 0x80, 0x80, 0x80, 0x80, 0], &[0xbf], &[0x3f], &[0x3f, 0xff, 0x7f]] {
            assert!(Blocks::<()>::default().read(bad, |_| ()).is_err(), "{bad:x?}");
        }
        assert_eq!(Blocks::<()>::default().read(&[0x82], |_| ()), Ok(None), "a block without a path is no request");
    }
}
