use std::fs::File;
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use super::*;
use crate::hugepages;
use crate::pages::HUGE_1G_BYTES;
use crate::privatefs::{unnamed_file, TmpfsHuge};

const MIB: u64 = 1 << 20;

/// Held by the tests that use or change the machine's pool of huge pages.
static POOL: Mutex<()> = Mutex::new(());

fn request(size_bytes: u64, pages: PageChoice) -> SegmentRequest {
    SegmentRequest { name: "arena-test".into(), size_bytes, numa_node: None, pages }
}

/// Writes through the node's mapping and reads through another one, as a client would.
fn works(segment: &Segment) {
    let size = segment.size_bytes();
    segment.write_at(size - 5, b"bytes").unwrap();
    let client = Mapping::shared(segment.fd(), size as usize, 2 << 20).unwrap();
    let mut seen = [0; 5];
    assert!(client.read(size - 5, &mut seen));
    assert_eq!(&seen, b"bytes");
    assert!(client.write(size - 5, b"BYTES"));
    segment.read_at(size - 5, &mut seen).unwrap();
    assert_eq!(&seen, b"BYTES");
    assert!(File::from(segment.fd().try_clone_to_owned().unwrap()).metadata().unwrap().len() == size);
}

#[test]
fn small_pages_are_backed_and_touched_by_the_granule() {
    let segment = Segment::create(&request(5 * MIB, PageChoice::Small)).unwrap();
    assert_eq!((segment.page_kind(), segment.fallback()), (PageKind::Small, None));
    assert_eq!((segment.size_bytes(), segment.backed_bytes()), (6 * MIB, 0));
    segment.ensure_backed(MIB - 1..MIB + 1).unwrap();
    assert_eq!(segment.backed_bytes(), 2 * segment.granule_bytes());
    assert_eq!(segment.touch(0..MIB).unwrap(), MIB);
    assert_eq!(segment.touch(0..MIB).unwrap(), 0);
    assert_eq!((segment.touched_bytes(), segment.is_touched(&(0..MIB))), (MIB, true));
    assert!(!segment.is_touched(&(0..MIB + 1)));
    segment.ensure_backed(7..7).unwrap();
    works(&segment);
}

#[test]
fn transparent_huge_pages_are_claimed_only_where_the_kernel_shows_them() {
    for pages in [PageChoice::Thp, PageChoice::Auto] {
        let segment = Segment::create(&request(8 * MIB, pages)).unwrap();
        segment.touch(0..segment.size_bytes()).unwrap();
        let huge = crate::backing::huge_mapped_bytes(&segment.mapping).unwrap();
        match segment.page_kind() {
            PageKind::Small => {
                assert_eq!(huge, 0);
                assert!(segment.fallback().unwrap().contains("transparent huge pages were asked for"));
            }
            _ => {
                assert!(huge > 0);
                assert_eq!(segment.fallback(), None);
            }
        }
        works(&segment);
    }
}

#[test]
fn each_way_to_transparent_huge_pages_works_or_says_why_not() {
    for attempt in crate::backing::THP_WAYS {
        match attempt(&request(8 * MIB, PageChoice::Thp)) {
            Ok(made) => {
                let segment = Segment::from_parts(&request(8 * MIB, PageChoice::Thp), made);
                segment.ensure_backed(0..8 * MIB).unwrap();
                assert_eq!((segment.backed_bytes(), segment.granule_bytes()), (8 * MIB, 2 * MIB));
                works(&segment);
            }
            Err(crate::backing::Refused(reason)) => assert!(reason.len() > 20, "{reason}"),
        }
    }
}

#[test]
fn more_huge_pages_than_the_pool_has_fall_back_with_the_reason() {
    let _pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(pool) = hugepages::pool_of_machine(HUGE_2M_BYTES) else {
        return;
    };
    let size_bytes = (pool.unreserved() + 64) * HUGE_2M_BYTES;
    let segment = Segment::create(&request(size_bytes, PageChoice::Huge2M)).unwrap();
    assert!(!segment.page_kind().is_hugetlb());
    let reason = segment.fallback().unwrap();
    let counts = format!("{} pages of 2 MiB are needed", size_bytes / HUGE_2M_BYTES);
    assert!(reason.contains(&counts) && reason.contains("tune --apply --hugepages 2M="), "{reason}");
    assert_eq!(segment.report().asked, PageChoice::Huge2M);
    works(&segment);
}

#[test]
fn huge_pages_are_used_where_the_pool_has_them() {
    let _pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    let pages = 4;
    let reserved = match hugepages::reserve(pages, HUGE_2M_BYTES, None) {
        Ok(reserved) => reserved,
        Err(error) => {
            // Not root, or no huge pages at all: then the error must say what to do.
            assert!(error.to_string().contains("huge page"), "{error}");
            return;
        }
    };
    let _reserved = Reserved(reserved.added, HUGE_2M_BYTES);
    let segment = Segment::create(&request(pages * HUGE_2M_BYTES - 1, PageChoice::Huge2M)).unwrap();
    if reserved.shortfall.is_none() {
        assert_eq!((segment.page_kind(), segment.fallback()), (PageKind::Huge2M, None));
        assert_eq!(segment.size_bytes(), pages * HUGE_2M_BYTES);
        works(&segment);
        assert_eq!(segment.touch(0..segment.size_bytes()).unwrap(), segment.size_bytes());
        // Everything in the pool is promised to the first segment now.
        let more = Segment::create(&request(
            (hugepages::pool_of_machine(HUGE_2M_BYTES).unwrap().unreserved() + 1) * HUGE_2M_BYTES,
            PageChoice::Huge2M,
        ));
        assert!(more.unwrap().fallback().is_some());
    } else {
        assert!(segment.fallback().is_some());
    }
}

/// Gives the pages back however the test ends; declared before the segment that uses them, so dropped after it.
struct Reserved(u64, u64);

impl Drop for Reserved {
    fn drop(&mut self) {
        hugepages::release(self.0, self.1, None).unwrap();
    }
}

#[test]
fn pages_of_1_gib_are_used_or_the_reason_says_why_not() {
    let _pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    let wanted = request(MIB, PageChoice::Huge1G);
    match hugepages::reserve(1, HUGE_1G_BYTES, None) {
        Ok(reserved) if reserved.shortfall.is_none() => {
            let _reserved = Reserved(reserved.added, HUGE_1G_BYTES);
            let segment = Segment::create(&wanted).unwrap();
            assert_eq!((segment.page_kind(), segment.fallback()), (PageKind::Huge1G, None));
            assert_eq!((segment.size_bytes(), segment.granule_bytes()), (HUGE_1G_BYTES, HUGE_1G_BYTES));
            works(&segment);
        }
        // Not root, no such pool, or no free GiB in one piece.
        other => {
            let segment = Segment::create(&wanted).unwrap();
            assert!(!segment.page_kind().is_hugetlb(), "{other:?}");
            let reason = segment.fallback().unwrap();
            assert!(reason.contains("1 GiB huge pages were asked for"), "{reason}");
            works(&segment);
        }
    }
}

#[test]
fn a_range_that_memory_can_not_back_is_an_error_and_not_a_signal() {
    // A file system that ends after 4 MiB stands for a machine that runs out of memory below a segment of 16 MiB.
    let file = match unnamed_file(TmpfsHuge::Never, 4 * MIB) {
        Ok(file) => file,
        Err(error) => {
            panic!("this test needs the right to mount a tmpfs, or user namespaces: {error}")
        }
    };
    sys::set_size(file.as_fd(), 16 * MIB).unwrap();
    let mapping = Mapping::shared(file.as_fd(), 16 << 20, 2 << 20).unwrap();
    let made = backing::Made {
        kind: PageKind::Small,
        backing: Backing::Allocate,
        file,
        mapping,
        size_bytes: 16 * MIB,
        fallback: None,
        numa_problem: None,
    };
    let segment = Segment::from_parts(&request(16 * MIB, PageChoice::Small), made);
    segment.write_at(0, b"fits").unwrap();
    segment.ensure_backed(0..2 * MIB).unwrap();
    let error = segment.ensure_backed(2 * MIB..16 * MIB).unwrap_err();
    assert!(matches!(&error, ArenaError::NotBacked { source, .. } if source.raw_os_error() == Some(libc::ENOSPC)));
    assert!(error.to_string().contains("--object-store-memory"), "{error}");
    // What a failed call took is given back, so the rest of the room can still be had, and then nothing more.
    segment.ensure_backed(8 * MIB..10 * MIB).unwrap();
    assert!(segment.write_at(15 * MIB, b"does not fit").is_err());
    assert!(segment.read_at(15 * MIB, &mut [0; 8]).is_err());
    assert!(segment.touch(9 * MIB..16 * MIB).is_err());
    assert_eq!(segment.backed_bytes(), 4 * MIB);
    // Touching through the mapping itself, as populating does, is an error too.
    assert!(backing::populate(&segment.mapping, &(12 * MIB..16 * MIB)).is_err());
    segment.write_at(2 * MIB - 4, b"good").unwrap();
}

#[test]
fn nothing_is_taken_beyond_the_machines_headroom() {
    let size_bytes = 1 << 46;
    let error = Segment::create(&request(size_bytes, PageChoice::Auto)).unwrap_err();
    assert!(matches!(error, ArenaError::TooLarge { .. }), "{error}");
    assert!(error.to_string().contains("--object_store_memory"), "{error}");
    let gate = HeadroomGate::default();
    gate.take(MIB).unwrap();
    assert!(gate.credit_bytes.load(Ordering::Relaxed) > 0);
    assert!(matches!(gate.take(u64::MAX), Err(ArenaError::NoHeadroom { .. })));
    for size_bytes in [0, u64::MAX] {
        let error = Segment::create(&request(size_bytes, PageChoice::Auto)).unwrap_err();
        assert!(matches!(error, ArenaError::BadSize { .. }), "{error}");
    }
}

#[test]
fn ranges_outside_the_segment_are_refused() {
    let segment = Segment::create(&request(2 * MIB, PageChoice::Small)).unwrap();
    for range in [0..2 * MIB + 1, 3 * MIB..3 * MIB, u64::MAX - 1..u64::MAX] {
        assert!(matches!(segment.ensure_backed(range.clone()), Err(ArenaError::OutOfBounds { .. })), "{range:?}");
    }
    assert!(segment.write_at(u64::MAX, b"x").is_err());
    assert!(segment.read_at(2 * MIB, &mut [0]).is_err());
    let backwards = Range { start: MIB, end: 0 };
    assert!(matches!(segment.touch(backwards), Err(ArenaError::OutOfBounds { .. })));
}

#[test]
fn a_client_can_not_shrink_a_memfd_under_the_others() {
    let segment = Segment::create(&request(2 * MIB, PageChoice::Small)).unwrap();
    let error = sys::set_size(segment.fd(), MIB).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EPERM));
}

#[test]
fn a_numa_preference_is_set_or_its_problem_reported() {
    let here = SegmentRequest { numa_node: Some(0), ..request(4 * MIB, PageChoice::Auto) };
    let segment = Segment::create(&here).unwrap();
    assert_eq!(segment.numa_node(), Some(0));
    works(&segment);
    let nowhere = SegmentRequest { numa_node: Some(1023), ..request(4 * MIB, PageChoice::Small) };
    let report = Segment::create(&nowhere).unwrap().report();
    assert!(report.numa_problem.unwrap().contains("node 1023"));
}

#[test]
fn pages_are_looked_for_where_they_should_be() {
    for pages in [PageChoice::Small, PageChoice::Auto] {
        let here = SegmentRequest { numa_node: Some(0), ..request(8 * MIB, pages) };
        let segment = Segment::create(&here).unwrap();
        assert_eq!(segment.touch(2 * MIB..6 * MIB).unwrap(), 4 * MIB);
        let granules = segment.touched_bytes() / segment.granule_bytes();
        let seen = segment.report().numa_pages.unwrap();
        assert_eq!(seen.on_node + seen.elsewhere, granules, "{pages}");
        // Node 0 has memory on every machine; on one with more nodes it could be full, which is no fault of the segment's.
        assert!(seen.on_node > 0, "{pages}: {seen:?}");
    }
    assert_eq!(Segment::create(&request(2 * MIB, PageChoice::Auto)).unwrap().report().numa_pages, None);
    // What one node can't show: pages elsewhere, and pages that are gone.
    let seen = NumaPages::count(&[1, 0, 1, 3, -libc::ENOENT], 1);
    assert_eq!(seen, NumaPages { on_node: 2, elsewhere: 2 });
}

#[test]
fn the_sample_of_a_large_segment_is_bounded() {
    let here = SegmentRequest { numa_node: Some(0), ..request(256 * MIB, PageChoice::Small) };
    let segment = Segment::create(&here).unwrap();
    let granules = segment.size_bytes() / segment.granule_bytes();
    assert!(granules > NUMA_SAMPLE_PAGES);
    segment.touch(0..segment.size_bytes()).unwrap();
    let seen = segment.numa_pages().unwrap().unwrap();
    assert_eq!(seen.on_node + seen.elsewhere, NUMA_SAMPLE_PAGES);
}

#[test]
fn a_file_size_limit_is_an_error_and_not_a_signal() {
    let name = "arena::tests::a_file_size_limit_is_an_error_and_not_a_signal";
    if std::env::var_os("RAYLET_TUNING_TEST_CHILD").is_none() {
        // The limit is the process's, so the test runs again in one of its own.
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture", "--test-threads=1"])
            .env("RAYLET_TUNING_TEST_CHILD", "1")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("1 passed"), "{text} {:?}", output.status);
        return;
    }
    sys::set_soft_rlimit(libc::RLIMIT_FSIZE, MIB, sys::rlimit(libc::RLIMIT_FSIZE).unwrap().1).unwrap();
    let error = Segment::create(&request(2 * MIB, PageChoice::Auto)).unwrap_err();
    assert!(matches!(error, ArenaError::FileSizeLimit { limit_bytes: MIB, .. }), "{error}");
}

#[test]
fn granules_keep_count_and_find_what_is_clear() {
    let granules = Granules::new(200 * 10 - 5, 10);
    assert_eq!(granules.next_clear_run(&(0..1995)), Some(0..1995));
    assert_eq!(granules.set(&(630..660)), 30);
    assert_eq!(granules.set(&(650..670)), 10);
    assert_eq!(granules.next_clear_run(&(635..1000)), Some(670..1000));
    assert_eq!(granules.next_clear_run(&(600..1000)), Some(600..630));
    assert_eq!(granules.next_clear_run(&(640..670)), None);
    granules.set(&(670..1995));
    granules.set(&(0..630));
    assert_eq!((granules.first_clear(&(0..1995)), granules.set_bytes()), (None, 1995));
}
