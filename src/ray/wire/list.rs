//! Lists inside messages: views of a received body, or slices that a sender owns.

use std::fmt;

use raylet_shard::ids::ObjectId;

use super::error::WireError;
use super::table::Cursor;

/// Something that a flatbuffer vector holds.
pub trait Element<'a>: Copy {
    /// Bytes that an element takes in the vector itself.
    const INLINE_BYTES: usize;

    /// Reads the element whose inline bytes are at `at`.
    fn read(cursor: Cursor<'a>, at: usize) -> Result<Self, WireError>;
}

impl<'a> Element<'a> for ObjectId {
    const INLINE_BYTES: usize = 4;

    fn read(cursor: Cursor<'a>, at: usize) -> Result<Self, WireError> {
        cursor.id(cursor.follow(at)?).map(ObjectId)
    }
}

impl<'a> Element<'a> for i32 {
    const INLINE_BYTES: usize = 4;

    fn read(cursor: Cursor<'a>, at: usize) -> Result<Self, WireError> {
        cursor.array(at).map(i32::from_le_bytes)
    }
}

impl<'a> Element<'a> for i64 {
    const INLINE_BYTES: usize = 8;

    fn read(cursor: Cursor<'a>, at: usize) -> Result<Self, WireError> {
        cursor.array(at).map(i64::from_le_bytes)
    }
}

/// A list in a message. Decoding makes a view of the body whose every element has been checked; a sender makes one
/// from a slice (`List::from(&ids[..])`). Both compare, iterate and encode alike.
#[derive(Clone, Copy)]
pub struct List<'a, T>(Repr<'a, T>);

#[derive(Clone, Copy)]
enum Repr<'a, T> {
    Wire {
        cursor: Cursor<'a>,
        /// Where the elements start.
        at: usize,
        /// How many there are.
        length: usize,
    },
    Slice(&'a [T]),
}

impl<'a, T: Element<'a>> List<'a, T> {
    /// A view of the vector whose elements start at `at`, after reading each of them once.
    pub(super) fn checked(cursor: Cursor<'a>, at: usize, length: usize) -> Result<Self, WireError> {
        for index in 0..length {
            T::read(cursor, at + index * T::INLINE_BYTES)?;
        }
        Ok(Self(Repr::Wire { cursor, at, length }))
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        match self.0 {
            Repr::Wire { length, .. } => length,
            Repr::Slice(slice) => slice.len(),
        }
    }

    /// True if there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The element at `index`, `None` from [`Self::len`] on.
    pub fn get(&self, index: usize) -> Option<T> {
        match self.0 {
            Repr::Wire { cursor, at, length } if index < length => {
                // `checked` has read this element of this body before, so this is always `Some`.
                T::read(cursor, at + index * T::INLINE_BYTES).ok()
            }
            Repr::Wire { .. } => None,
            Repr::Slice(slice) => slice.get(index).copied(),
        }
    }

    /// The elements in order.
    pub fn iter(&self) -> ListIter<'a, T> {
        ListIter { list: *self, next: 0, end: self.len() }
    }
}

impl<'a, T> From<&'a [T]> for List<'a, T> {
    fn from(slice: &'a [T]) -> Self {
        Self(Repr::Slice(slice))
    }
}

impl<T> Default for List<'_, T> {
    fn default() -> Self {
        Self(Repr::Slice(&[]))
    }
}

impl<'a, T: Element<'a> + PartialEq> PartialEq for List<'a, T> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl<'a, T: Element<'a> + fmt::Debug> fmt::Debug for List<'a, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl<'a, T: Element<'a>> IntoIterator for List<'a, T> {
    type Item = T;
    type IntoIter = ListIter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// Walks a [`List`], from either end.
#[derive(Clone)]
pub struct ListIter<'a, T> {
    list: List<'a, T>,
    next: usize,
    end: usize,
}

impl<'a, T: Element<'a>> Iterator for ListIter<'a, T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        if self.next == self.end {
            return None;
        }
        let element = self.list.get(self.next);
        self.next += 1;
        element
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.end - self.next;
        (left, Some(left))
    }
}

impl<'a, T: Element<'a>> DoubleEndedIterator for ListIter<'a, T> {
    fn next_back(&mut self) -> Option<T> {
        if self.next == self.end {
            return None;
        }
        self.end -= 1;
        self.list.get(self.end)
    }
}

impl<'a, T: Element<'a>> ExactSizeIterator for ListIter<'a, T> {}
