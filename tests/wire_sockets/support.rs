//! What the tests of the socket protocols share: recorded frames, and a second opinion on every frame we write.

use flatbuffers::{InvalidFlatbuffer, Vector, Verifiable, Verifier, VerifierOptions};
use raylet_uring::ray::wire::frame::{self, Frame};

/// A type of flatbuffer field, enough to have a buffer checked by the flatbuffers crate's own verifier.
#[derive(Clone, Copy)]
pub enum Kind {
    Bool,
    I32,
    I64,
    F64,
    /// A string of any bytes, or a byte vector.
    Bytes,
    /// `PlasmaObjectSpec`: 80 bytes aligned to 8.
    Spec,
    Table(&'static [Kind]),
    Strings,
    I32s,
    I64s,
    Specs,
    Tables(&'static [Kind]),
}

const OWNER: &[Kind] = &[Kind::Bytes, Kind::Bytes, Kind::I32, Kind::Bytes];

/// The root table of each message of the raylet socket; `None` for a message without a body.
pub fn raylet_schema(message_type: i64) -> Option<&'static [Kind]> {
    use Kind::*;
    Some(match message_type {
        0 => return None,
        1 => &[I32, Bytes, I64, Bytes, I32, I32, Bytes, I32, Bytes],
        2 => &[Bool, Bytes, Bytes, I32],
        3 => &[I32, Bytes],
        4 => &[Bool, Bytes],
        5 => &[I32, Bytes, Bytes],
        6 | 9 | 10 => &[],
        7 => &[Strings, Tables(OWNER), I64],
        8 => &[I64],
        11 => &[Strings, Tables(OWNER), I32, I64],
        12 => &[Strings, Strings],
        13 => &[Strings, Tables(OWNER), Bytes],
        14 => &[Bytes, Bytes, Bytes, F64],
        15 => &[Bool, Strings],
        16 => &[Bytes, Table(OWNER)],
        other => panic!("no schema for raylet message {other}"),
    })
}

/// The root table of each message of the plasma socket; `None` for a message without a body.
pub fn plasma_schema(message_type: i64) -> Option<&'static [Kind]> {
    use Kind::*;
    Some(match message_type {
        0 => return None,
        1 => &[Bytes, Bytes, Bytes, I32, Bytes, Bool, I64, I64, I32, I32, Bool],
        2 => &[Bytes, I64],
        3 => &[Bytes, I64, Spec, I32, I32, I64, I64],
        4..=6 | 14 => &[Bytes],
        7 | 15 => &[Bytes, I32],
        8 => &[Strings, I64],
        9 => &[Strings, Specs, I32s, I64s, I64s, Strings],
        10 => &[Bytes, Bool],
        11 => &[Bytes, Bool, I32],
        12 => &[I32, Strings],
        13 => &[I32, Strings, I32s],
        16 | 18 => &[],
        17 => &[I64],
        19 => &[Bytes],
        other => panic!("no schema for plasma message {other}"),
    })
}

/// Has the flatbuffers crate check a body against a schema: bounds and alignment of every field.
pub fn verify(body: &[u8], schema: Option<&[Kind]>) -> Result<(), InvalidFlatbuffer> {
    let Some(fields) = schema else {
        assert!(body.is_empty());
        return Ok(());
    };
    let options = VerifierOptions::default();
    let mut verifier = Verifier::new(&options, body);
    let root = verifier.get_uoffset(0)? as usize;
    verify_table(&mut verifier, root, fields)
}

fn verify_table(verifier: &mut Verifier<'_, '_>, at: usize, fields: &[Kind]) -> Result<(), InvalidFlatbuffer> {
    let mut table = verifier.visit_table(at)?;
    let mut found = Vec::new();
    for (slot, kind) in fields.iter().enumerate() {
        found.extend(table.deref(4 + 2 * slot as u16)?.map(|at| (at, *kind)));
    }
    table.finish();
    found.into_iter().try_for_each(|(at, kind)| verify_field(verifier, at, kind))
}

fn verify_field(v: &mut Verifier<'_, '_>, at: usize, kind: Kind) -> Result<(), InvalidFlatbuffer> {
    match kind {
        Kind::Bool => v.in_buffer::<bool>(at),
        Kind::I32 => v.in_buffer::<i32>(at),
        Kind::I64 => v.in_buffer::<i64>(at),
        Kind::F64 => v.in_buffer::<f64>(at),
        Kind::Spec => {
            v.is_aligned::<u64>(at)?;
            v.range_in_buffer(at, 80)
        }
        Kind::Bytes | Kind::Strings | Kind::I32s | Kind::I64s | Kind::Specs | Kind::Table(_) | Kind::Tables(_) => {
            let target = at + v.get_uoffset(at)? as usize;
            verify_target(v, target, kind)
        }
    }
}

fn verify_target(v: &mut Verifier<'_, '_>, at: usize, kind: Kind) -> Result<(), InvalidFlatbuffer> {
    match kind {
        Kind::Bytes => Vector::<u8>::run_verifier(v, at),
        Kind::I32s => Vector::<i32>::run_verifier(v, at),
        Kind::I64s => Vector::<i64>::run_verifier(v, at),
        Kind::Table(fields) => verify_table(v, at, fields),
        Kind::Specs => {
            let count = v.get_uoffset(at)? as usize;
            v.is_aligned::<u64>(at + 4)?;
            v.range_in_buffer(at + 4, 80 * count)
        }
        Kind::Strings | Kind::Tables(_) => {
            let element = match kind {
                Kind::Tables(fields) => Kind::Table(fields),
                _ => Kind::Bytes,
            };
            let count = v.get_uoffset(at)? as usize;
            (0..count).try_for_each(|index| verify_field(v, at + 4 + 4 * index, element))
        }
        Kind::Bool | Kind::I32 | Kind::I64 | Kind::F64 | Kind::Spec => {
            unreachable!("stored inline")
        }
    }
}

/// The one frame in `bytes`.
pub fn only_frame(bytes: &[u8]) -> Frame<'_> {
    let frame = frame::split(bytes, frame::RAYLET_MAX_BODY_BYTES).expect("a valid header").expect("a whole frame");
    assert_eq!(frame.frame_bytes, bytes.len(), "nothing follows the frame");
    frame
}

/// The name and bytes of every recorded frame whose name starts with `socket`.
pub fn recorded(socket: &str) -> Vec<(String, Vec<u8>)> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/wire");
    let mut frames: Vec<_> = std::fs::read_dir(folder)
        .expect("the folder of recorded frames")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "hex"))
        .map(|path| {
            let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
            (name, from_hex(&std::fs::read_to_string(&path).expect("readable")))
        })
        .filter(|(name, _)| name.starts_with(socket))
        .collect();
    frames.sort();
    assert!(!frames.is_empty(), "no recorded frames of the {socket} socket in {folder}");
    frames
}

fn from_hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> =
        text.chars().filter(|c| !c.is_whitespace()).map(|c| c.to_digit(16).expect("a hex digit") as u8).collect();
    digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}
