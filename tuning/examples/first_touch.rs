//! What a client's first write into fresh shared memory costs, by kind of pages and by what the node did before.
//!
//! ```text
//! cargo run --release -p raylet-tuning --example first_touch -- [--reserve] [--cold] [MIB [ROUNDS]]
//! ```
//! `--reserve` puts the 2 MiB pages that the hugetlb rows need into the machine's pool and takes them out again (root).
//! The client is another process, which maps the segment's descriptor as Ray's plasma client does and copies an array into
//! it. Rounds interleave the rows; the table has medians.
//!
//! In a virtual machine whose free pages go back to the hypervisor, a page that the guest takes may have no memory behind
//! it yet, and that costs more than anything the guest does. So each row first uses and frees as much memory as it needs,
//! for the rows to differ in nothing but themselves. `--cold` waits instead until the hypervisor has taken it back.

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use memmap2::{Advice, MmapMut, MmapRaw};
use raylet_tuning::pages::HUGE_2M_BYTES;
use raylet_tuning::{hugepages, PageChoice, Segment, SegmentRequest};

/// Seconds in which a hypervisor takes free pages back.
const COLD_AFTER: Duration = Duration::from_secs(8);

type Outcome<T> = Result<T, Box<dyn Error>>;

/// What the node does before the client maps the segment.
#[derive(Clone, Copy, PartialEq)]
enum Before {
    Nothing,
    Back,
    Touch,
}

#[derive(Clone, Copy)]
enum Row {
    /// A file in /dev/shm that nobody prepared: what stock Ray's plasma store does.
    Stock,
    Segment(PageChoice, Before),
}

/// Seconds of one round.
struct Sample {
    kind: String,
    before_s: f64,
    fresh_s: f64,
    again_s: f64,
}

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, path, size] = arguments.as_slice() {
        if flag == "--client" {
            return client(path, size.parse()?);
        }
    }
    let reserve = arguments.iter().any(|argument| argument == "--reserve");
    let cold = arguments.iter().any(|argument| argument == "--cold");
    let mut numbers = arguments.iter().filter(|argument| !argument.starts_with("--"));
    let size_bytes = numbers.next().map_or(Ok(1024), |text| text.parse::<u64>())? << 20;
    let rounds = numbers.next().map_or(Ok(5), |text| text.parse::<usize>())?.max(1);
    let reserved = if reserve {
        let reserved = hugepages::reserve(size_bytes.div_ceil(HUGE_2M_BYTES), HUGE_2M_BYTES, None)?;
        if let Some(shortfall) = &reserved.shortfall {
            println!("{shortfall}");
        }
        reserved.added
    } else {
        0
    };
    let measured = measure(size_bytes, rounds, cold);
    if reserved > 0 {
        hugepages::release(reserved, HUGE_2M_BYTES, None)?;
    }
    measured
}

fn measure(size_bytes: u64, rounds: usize, cold: bool) -> Outcome<()> {
    let mut rows = vec![Row::Stock];
    for pages in [PageChoice::Small, PageChoice::Thp, PageChoice::Huge2M] {
        rows.extend([Before::Nothing, Before::Back, Before::Touch].map(|before| Row::Segment(pages, before)));
    }
    let mut samples: Vec<Vec<Sample>> = rows.iter().map(|_| Vec::new()).collect();
    for _ in 0..rounds {
        for (row, samples) in rows.iter().zip(&mut samples) {
            use_and_free(2 * size_bytes)?;
            if cold {
                thread::sleep(COLD_AFTER);
            }
            samples.push(sample(*row, size_bytes)?);
        }
    }
    let gigabytes = size_bytes as f64 / 1e9;
    let median = |samples: &[Sample], value: fn(&Sample) -> f64| {
        let mut values: Vec<f64> = samples.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let stock = median(&samples[0], |sample| sample.fresh_s);
    let memory = if cold { "as the machine has it after a pause" } else { "in use just before" };
    println!("{} MiB, median of {rounds} rounds, memory {memory}", size_bytes >> 20);
    println!("| pages | the node before | takes, ms | client's first write, GB/s | both, against stock | second write, GB/s |");
    println!("|---|---|---|---|---|---|");
    for (row, samples) in rows.iter().zip(&samples) {
        let before = median(samples, |sample| sample.before_s);
        let fresh = median(samples, |sample| sample.fresh_s);
        let again = median(samples, |sample| sample.again_s);
        let (what, all) = match row {
            Row::Stock => ("nothing (stock Ray)", fresh),
            Row::Segment(_, Before::Nothing) => ("nothing", fresh),
            Row::Segment(_, Before::Back) => ("backs the range", before + fresh),
            // Touched ahead of demand, so no part of the put.
            Row::Segment(_, Before::Touch) => ("touched it ahead", fresh),
        };
        println!(
            "| {} | {what} | {:.1} | {:.1} | {:.1}x | {:.1} |",
            samples[0].kind,
            before * 1e3,
            gigabytes / fresh,
            stock / all,
            gigabytes / again
        );
    }
    println!("ensure_backed on 1 MiB that is backed: {:.0} ns", backed_check_ns()?);
    Ok(())
}

fn sample(row: Row, size_bytes: u64) -> Outcome<Sample> {
    match row {
        Row::Stock => {
            let path = format!("/dev/shm/first-touch-{}", std::process::id());
            let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
            std::fs::remove_file(&path)?;
            file.set_len(size_bytes)?;
            let (fresh_s, again_s) = run_client(&file, size_bytes)?;
            Ok(Sample { kind: "/dev/shm, 4 KiB".into(), before_s: 0.0, fresh_s, again_s })
        }
        Row::Segment(pages, before) => {
            let name = "first-touch".to_owned();
            let segment = Segment::create(&SegmentRequest { name, size_bytes, numa_node: None, pages })?;
            let begun = Instant::now();
            match before {
                Before::Nothing => {}
                Before::Back => segment.ensure_backed(0..size_bytes)?,
                Before::Touch => drop(segment.touch(0..size_bytes)?),
            }
            let before_s = begun.elapsed().as_secs_f64();
            let (fresh_s, again_s) = run_client(&segment.fd(), size_bytes)?;
            let mut kind = segment.page_kind().to_string();
            if segment.fallback().is_some() {
                kind = format!("{pages} asked, {kind}");
            }
            Ok(Sample { kind, before_s, fresh_s, again_s })
        }
    }
}

/// Leaves the kernel with free memory that has just been in use. The client's own array needs as much as the segment.
fn use_and_free(size_bytes: u64) -> Outcome<()> {
    let mut memory = MmapMut::map_anon(usize::try_from(size_bytes)?)?;
    // Where it can't be had, small pages do as well.
    let _ = memory.advise(Advice::HugePage);
    memory.fill(1);
    Ok(())
}

/// Seconds of the client's first and second write.
fn run_client(fd: &impl AsRawFd, size_bytes: u64) -> Outcome<(f64, f64)> {
    let path = format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd());
    let output = Command::new(std::env::current_exe()?).args(["--client", &path, &size_bytes.to_string()]).output()?;
    let text = String::from_utf8(output.stdout)?;
    let (fresh, again) = text
        .trim()
        .split_once(' ')
        .ok_or_else(|| format!("the client failed: {}", String::from_utf8_lossy(&output.stderr)))?;
    Ok((fresh.parse()?, again.parse()?))
}

fn client(path: &str, size_bytes: usize) -> Outcome<()> {
    let source = vec![1u8; size_bytes];
    let file: File = OpenOptions::new().read(true).write(true).open(path)?;
    let mut seconds = [0.0; 2];
    let begun = Instant::now();
    let mapping = MmapRaw::map_raw(&file)?;
    assert!(mapping.len() >= source.len());
    let mut since = begun;
    for second in &mut seconds {
        // SAFETY: the mapping is writable and at least as long as the source (asserted), and is not the source.
        unsafe { std::ptr::copy_nonoverlapping(source.as_ptr(), mapping.as_mut_ptr(), source.len()) };
        *second = since.elapsed().as_secs_f64();
        since = Instant::now();
    }
    println!("{} {}", seconds[0], seconds[1]);
    Ok(())
}

fn backed_check_ns() -> Outcome<f64> {
    let request =
        SegmentRequest { name: "check".into(), size_bytes: 64 << 20, numa_node: None, pages: PageChoice::Auto };
    let segment = Segment::create(&request)?;
    segment.ensure_backed(0..64 << 20)?;
    let calls = 1_000_000u64;
    let begun = Instant::now();
    for call in 0..calls {
        let start = (call % 63) << 20;
        segment.ensure_backed(std::hint::black_box(start..start + (1 << 20)))?;
    }
    Ok(begun.elapsed().as_secs_f64() * 1e9 / calls as f64)
}
