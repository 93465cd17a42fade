use std::collections::BTreeSet;
use std::fmt::Write;

use super::*;
use crate::frame::{BodyWriter, FrameError, Head};
use crate::ids::{ObjectId, WorkerId};
use crate::ring::layout::{FIRST_BYTES, LINE_BYTES};

/// Writes `PROTOCOL.md` anew instead of comparing with it.
const UPDATE_ENV: &str = "RAYLET_UPDATE_PROTOCOL";

fn table(out: &mut String, title: &str, layout: &StructLayout) {
    let _ = writeln!(out, "\n### {title}: {} bytes\n", layout.size_bytes);
    let _ = writeln!(out, "| bytes | field | type |\n|---|---|---|");
    for field in layout.fields {
        let FieldLayout { name, kind, offset_bytes, size_bytes } = field;
        let _ = writeln!(out, "| {offset_bytes}..{} | {name} | {kind} |", offset_bytes + size_bytes);
    }
}

fn tables() -> String {
    let mut out = String::new();
    for (title, layouts) in [("To the node", REQUEST_LAYOUTS), ("From the node", REPLY_LAYOUTS)] {
        let _ = writeln!(out, "\n## {title}");
        for (number, layout) in layouts {
            table(&mut out, &format!("{number} {}", layout.name), layout);
        }
    }
    let _ = writeln!(out, "\n## Parts of messages");
    PART_LAYOUTS.iter().for_each(|layout| table(&mut out, layout.name, layout));
    let _ = writeln!(out, "\n## Codes of refusals\n\n| code | name | what is wrong | what to do |\n|---|---|---|---|");
    for code in RefusalCode::ALL {
        let _ = writeln!(out, "| {} | {code:?} | {} | {} |", code.to_wire(), code.what(), code.action());
    }
    out
}

#[test]
#[cfg(not(miri))]
fn the_protocols_description_is_what_the_compiler_made() {
    const MARK: &str = "<!-- What follows is compared with the code by a test of `messages`. -->\n";
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/PROTOCOL.md");
    let page = std::fs::read_to_string(path).unwrap();
    let (text, written) = page.split_once(MARK).expect("the page has its mark");
    if std::env::var_os(UPDATE_ENV).is_some() {
        std::fs::write(path, format!("{text}{MARK}{}", tables())).unwrap();
        return;
    }
    let differs = written
        .lines()
        .zip(tables().lines())
        .find(|(written, made)| written != made)
        .map(|(w, m)| (w.to_owned(), m.to_owned()));
    assert_eq!(
        differs, None,
        "PROTOCOL.md is out of date: run this test with {UPDATE_ENV}=1, and raise VERSION if old peers can't follow"
    );
    assert_eq!(written, tables());
}

#[test]
fn numbers_are_used_once_and_say_the_direction() {
    let requests: BTreeSet<u16> = REQUEST_LAYOUTS.iter().map(|(number, _)| *number).collect();
    let replies: BTreeSet<u16> = REPLY_LAYOUTS.iter().map(|(number, _)| *number).collect();
    assert_eq!((requests.len(), replies.len()), (REQUEST_LAYOUTS.len(), REPLY_LAYOUTS.len()));
    assert!(requests.iter().all(|number| *number < FIRST_FROM_NODE && *number > 0));
    assert!(replies.iter().all(|number| *number >= FIRST_FROM_NODE));
}

#[test]
fn codes_are_used_once_and_read_back() {
    let codes: BTreeSet<u16> = RefusalCode::ALL.iter().map(|code| code.to_wire()).collect();
    assert_eq!(codes.len(), RefusalCode::ALL.len());
    for code in RefusalCode::ALL {
        assert_eq!(RefusalCode::from_wire(code.to_wire()), *code);
    }
    assert_eq!(RefusalCode::from_wire(60_000), RefusalCode::Other(60_000));
    let refusal = Refusal::new(RefusalCode::StoreFull, "70 bytes");
    assert_eq!(
        refusal.to_string(),
        "the object store has no room and nothing left to evict: 70 bytes; to do: release and delete objects, wait and try again, or give the node more memory"
    );
}

/// What the ring was made for: these take one line of it.
#[test]
fn hot_messages_take_one_line() {
    let (object, worker) = (ObjectId([1; 28]), WorkerId([2; 28]));
    let place = Place { offset_bytes: 1, data_bytes: 2, metadata_bytes: 3, segment: 4 };
    let mut writer = BodyWriter::default();
    let mut sizes = Vec::new();
    let request = RequestLease {
        lease: 1,
        class: 2,
        priority: 3,
        wait_ns: 4,
        unused_ns: 5,
        deps: Vec::new(),
        payload: Vec::new(),
    };
    let publish = Publish { object, credit: 1, offset_bytes: 2, data_bytes: 3, metadata_bytes: 4, pin: true };
    let granted = Granted { lease: 1, worker, allocation: Vec::new(), address: String::new() };
    sizes.push(writer.body(&Get { object, timeout_ns: 1 }).unwrap().len());
    sizes.push(writer.body(&Found { place: place.clone() }).unwrap().len());
    sizes.push(writer.body(&Created { place }).unwrap().len());
    sizes.push(writer.body(&publish).unwrap().len());
    sizes.push(writer.body(&Release { object, count: 1 }).unwrap().len());
    sizes.push(writer.body(&request).unwrap().len());
    sizes.push(writer.body(&granted).unwrap().len());
    sizes.push(writer.body(&ReturnLease { lease: 1, broken: false }).unwrap().len());
    sizes.push(writer.body(&Done { count: 1 }).unwrap().len());
    assert!(sizes.iter().all(|size| *size <= FIRST_BYTES), "{sizes:?} of {FIRST_BYTES} in {LINE_BYTES}");
}

#[test]
fn a_list_that_says_it_is_longer_than_its_message_is_refused() {
    let wait = Wait { timeout_ns: 1, wanted: 1, objects: vec![ObjectId([1; 28]); 3] };
    let mut writer = BodyWriter::default();
    let body = writer.body(&wait).unwrap().to_vec();
    let length_at = body.len() - 4;
    let head = Head::new(Wait::TYPE, 1);
    let mut aligned = rkyv::util::AlignedVec::<16>::new();
    for length in [4u32, u32::MAX, 1 << 20] {
        aligned.clear();
        aligned.extend_from_slice(&body);
        let field = REQUEST_LAYOUTS.iter().find(|(number, _)| *number == Wait::TYPE).unwrap().1;
        let objects = field.fields.iter().find(|field| field.name == "objects").unwrap();
        let root = body.len() - field.size_bytes;
        // A vector is a relative pointer and a length.
        let at = root + objects.offset_bytes + 4;
        assert!(at <= length_at);
        aligned[at..at + 4].copy_from_slice(&length.to_le_bytes());
        assert!(matches!(Request::read(head, &aligned), Err(FrameError::Malformed { name: "Wait", .. })));
    }
}
