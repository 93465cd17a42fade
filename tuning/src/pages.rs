//! What kind of pages a segment is asked for, and what kind it has.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// 4 KiB, the base page on the machines that this runs on.
pub const SMALL_PAGE_BYTES: u64 = 4 << 10;
/// 2 MiB, the size of a transparent huge page and of the common hugetlb page.
pub const HUGE_2M_BYTES: u64 = 2 << 20;
/// 1 GiB, the size of the large hugetlb page.
pub const HUGE_1G_BYTES: u64 = 1 << 30;

/// The pages that a segment is asked for. Whatever can't be had falls back towards `Small`, with the reason reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PageChoice {
    /// Transparent huge pages where they can be had, else 4 KiB pages. Never takes from the machine's hugetlb pool.
    Auto,
    /// 2 MiB pages from the hugetlb pool.
    #[serde(rename = "2m")]
    Huge2M,
    /// 1 GiB pages from the hugetlb pool.
    #[serde(rename = "1g")]
    Huge1G,
    /// Transparent huge pages.
    Thp,
    /// 4 KiB pages.
    #[serde(rename = "4k")]
    Small,
}

impl PageChoice {
    /// Page size in bytes of the hugetlb pool that this choice draws from, if it does.
    pub fn hugetlb_bytes(self) -> Option<u64> {
        match self {
            PageChoice::Huge2M => Some(HUGE_2M_BYTES),
            PageChoice::Huge1G => Some(HUGE_1G_BYTES),
            PageChoice::Auto | PageChoice::Thp | PageChoice::Small => None,
        }
    }
}

impl fmt::Display for PageChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PageChoice::Auto => "auto",
            PageChoice::Huge2M => "2m",
            PageChoice::Huge1G => "1g",
            PageChoice::Thp => "thp",
            PageChoice::Small => "4k",
        })
    }
}

/// A page choice that is none of the known ones.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("page kind {0:?} is not known: use one of auto, 2m, 1g, thp, 4k")]
pub struct UnknownPageChoice(String);

impl FromStr for PageChoice {
    type Err = UnknownPageChoice;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.trim().to_ascii_lowercase().as_str() {
            "auto" => Ok(PageChoice::Auto),
            "2m" => Ok(PageChoice::Huge2M),
            "1g" => Ok(PageChoice::Huge1G),
            "thp" => Ok(PageChoice::Thp),
            "4k" => Ok(PageChoice::Small),
            _ => Err(UnknownPageChoice(text.to_owned())),
        }
    }
}

/// The pages that a segment really has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PageKind {
    /// 1 GiB pages, reserved in the hugetlb pool.
    #[serde(rename = "hugetlb-1g")]
    Huge1G,
    /// 2 MiB pages, reserved in the hugetlb pool.
    #[serde(rename = "hugetlb-2m")]
    Huge2M,
    /// Transparent huge pages of a tmpfs that only this process holds, mounted nowhere.
    ThpTmpfs,
    /// Transparent huge pages of a memfd, as `transparent_hugepage/shmem_enabled` allows.
    ThpShmem,
    /// A memfd whose 4 KiB pages are collapsed into huge ones as ranges are backed (`MADV_COLLAPSE`).
    ThpCollapse,
    /// 4 KiB pages.
    #[serde(rename = "4k")]
    Small,
}

impl PageKind {
    /// Bytes that one page-table entry of a client covers where all goes well.
    pub fn page_bytes(self) -> u64 {
        match self {
            PageKind::Huge1G => HUGE_1G_BYTES,
            PageKind::Huge2M | PageKind::ThpTmpfs | PageKind::ThpShmem | PageKind::ThpCollapse => HUGE_2M_BYTES,
            PageKind::Small => SMALL_PAGE_BYTES,
        }
    }

    /// Pages come from the hugetlb pool and are the segment's from the start.
    pub fn is_hugetlb(self) -> bool {
        matches!(self, PageKind::Huge1G | PageKind::Huge2M)
    }
}

impl fmt::Display for PageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PageKind::Huge1G => "1 GiB huge pages",
            PageKind::Huge2M => "2 MiB huge pages",
            PageKind::ThpTmpfs => "transparent huge pages (private tmpfs)",
            PageKind::ThpShmem => "transparent huge pages (memfd)",
            PageKind::ThpCollapse => "transparent huge pages (memfd, collapsed)",
            PageKind::Small => "4 KiB pages",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_round_trip_through_their_text() {
        for choice in [PageChoice::Auto, PageChoice::Huge2M, PageChoice::Huge1G, PageChoice::Thp, PageChoice::Small] {
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
        let error = "8k".parse::<PageChoice>().unwrap_err().to_string();
        assert!(error.contains("8k") && error.contains("2m"), "{error}");
    }
}
