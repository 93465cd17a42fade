//! Reading flatbuffer tables with every access checked. No `unsafe`, no allocation, no copy but of scalars and ids.

use super::error::WireError;
use super::list::{Element, List};

/// The longest host name that DNS allows is 253 bytes.
pub(super) const MAX_HOST_BYTES: usize = 255;

/// A field of a table: its slot in the vtable and the name that errors give it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Field(pub u16, pub &'static str);

/// Where in a message something is being read, for errors.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    pub table: &'static str,
    pub field: &'static str,
}

/// A body being read at some place.
#[derive(Debug, Clone, Copy)]
pub struct Cursor<'a> {
    pub body: &'a [u8],
    pub place: Place,
}

impl<'a> Cursor<'a> {
    /// `needed` bytes at `at`.
    pub fn bytes(self, at: usize, needed: usize) -> Result<&'a [u8], WireError> {
        at.checked_add(needed).and_then(|end| self.body.get(at..end)).ok_or(WireError::OutOfBounds {
            table: self.place.table,
            field: self.place.field,
            at,
            needed,
            have: self.body.len(),
        })
    }

    /// `N` bytes at `at`, by value.
    pub fn array<const N: usize>(self, at: usize) -> Result<[u8; N], WireError> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(at, N)?);
        Ok(array)
    }

    fn u16(self, at: usize) -> Result<u16, WireError> {
        self.array(at).map(u16::from_le_bytes)
    }

    fn u32(self, at: usize) -> Result<u32, WireError> {
        self.array(at).map(u32::from_le_bytes)
    }

    /// The position that the offset at `at` points to. It can't overflow: `at` is inside the body.
    pub fn follow(self, at: usize) -> Result<usize, WireError> {
        Ok(at + self.u32(at)? as usize)
    }

    /// The content of the string or byte vector at `at`.
    pub fn string(self, at: usize) -> Result<&'a [u8], WireError> {
        let length = self.u32(at)? as usize;
        self.bytes(at + 4, length)
    }

    /// An id: a string of exactly `N` bytes.
    pub fn id<const N: usize>(self, at: usize) -> Result<[u8; N], WireError> {
        let bytes = self.string(at)?;
        bytes.try_into().map_err(|_| WireError::IdLength {
            table: self.place.table,
            field: self.place.field,
            expected: N,
            got: bytes.len(),
        })
    }
}

/// A table inside a body, its frame already checked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Table<'a> {
    body: &'a [u8],
    name: &'static str,
    /// Start of the table.
    at: usize,
    /// The vtable's slots, without the two lengths before them.
    slots: &'a [u8],
}

impl<'a> Table<'a> {
    /// The body's root table.
    pub fn root(name: &'static str, body: &'a [u8]) -> Result<Self, WireError> {
        let cursor = Cursor { body, place: Place { table: name, field: "(root)" } };
        Self::at(name, body, cursor.follow(0)?)
    }

    /// The table at `at`.
    pub fn at(name: &'static str, body: &'a [u8], at: usize) -> Result<Self, WireError> {
        let cursor = Cursor { body, place: Place { table: name, field: "(field list)" } };
        let back = i32::from_le_bytes(cursor.array(at)?);
        // The offset to the vtable is signed and subtracted; i64 holds every difference.
        let vtable = usize::try_from(at as i64 - i64::from(back)).unwrap_or(usize::MAX);
        let vtable_bytes = cursor.u16(vtable)?;
        if vtable_bytes < 4 || !vtable_bytes.is_multiple_of(2) {
            return Err(WireError::BadVtable { table: name, got: vtable_bytes });
        }
        let slots = &cursor.bytes(vtable, usize::from(vtable_bytes))?[4..];
        Ok(Self { body, name, at, slots })
    }

    fn cursor(&self, field: Field) -> Cursor<'a> {
        Cursor { body: self.body, place: Place { table: self.name, field: field.1 } }
    }

    /// Where the field's inline bytes are, `None` if it is absent.
    fn position(&self, field: Field) -> Option<usize> {
        let slot = usize::from(field.0) * 2;
        match self.slots.get(slot..slot + 2) {
            Some(&[0, 0]) | None => None,
            Some(offset) => Some(self.at + usize::from(u16::from_le_bytes([offset[0], offset[1]]))),
        }
    }

    fn required(&self, field: Field) -> Result<usize, WireError> {
        self.position(field).ok_or(WireError::Missing { table: self.name, field: field.1 })
    }

    fn scalar<const N: usize>(&self, field: Field) -> Result<Option<[u8; N]>, WireError> {
        self.position(field).map(|at| self.cursor(field).array(at)).transpose()
    }

    /// A `bool`, false if absent. As in Ray, every non-zero byte is true.
    pub fn bool(&self, field: Field) -> Result<bool, WireError> {
        Ok(self.scalar::<1>(field)?.is_some_and(|byte| byte != [0]))
    }

    /// An `int`, 0 if absent.
    pub fn i32(&self, field: Field) -> Result<i32, WireError> {
        Ok(self.scalar(field)?.map_or(0, i32::from_le_bytes))
    }

    /// A `long`, 0 if absent.
    pub fn i64(&self, field: Field) -> Result<i64, WireError> {
        Ok(self.scalar(field)?.map_or(0, i64::from_le_bytes))
    }

    /// A `ulong`, 0 if absent.
    pub fn u64(&self, field: Field) -> Result<u64, WireError> {
        Ok(self.scalar(field)?.map_or(0, u64::from_le_bytes))
    }

    /// A `double`, 0 if absent.
    pub fn f64(&self, field: Field) -> Result<f64, WireError> {
        Ok(self.scalar(field)?.map_or(0.0, f64::from_le_bytes))
    }

    /// A string or byte vector, empty if absent.
    pub fn bytes(&self, field: Field) -> Result<&'a [u8], WireError> {
        let cursor = self.cursor(field);
        match self.position(field) {
            Some(at) => cursor.string(cursor.follow(at)?),
            None => Ok(&[]),
        }
    }

    /// An IP address or host name, empty if absent. The limit also bounds the work that a body can cause whose list
    /// of addresses names one long text again and again.
    pub fn host(&self, field: Field) -> Result<&'a str, WireError> {
        let (table, field_name) = (self.name, field.1);
        let bytes = self.bytes(field)?;
        if bytes.len() > MAX_HOST_BYTES {
            return Err(WireError::TooLong { table, field: field_name, limit: MAX_HOST_BYTES, got: bytes.len() });
        }
        std::str::from_utf8(bytes).map_err(|error| WireError::NotUtf8 {
            table,
            field: field_name,
            valid_bytes: error.valid_up_to(),
        })
    }

    /// An id that must be there.
    pub fn id<const N: usize>(&self, field: Field) -> Result<[u8; N], WireError> {
        let cursor = self.cursor(field);
        cursor.id(cursor.follow(self.required(field)?)?)
    }

    /// An id that may be absent or empty, which both mean the nil id (all 0xff).
    pub fn id_or_nil<const N: usize>(&self, field: Field) -> Result<[u8; N], WireError> {
        if self.bytes(field)?.is_empty() {
            return Ok([0xff; N]);
        }
        self.id(field)
    }

    /// A table that must be there.
    pub fn table(&self, field: Field, name: &'static str) -> Result<Table<'a>, WireError> {
        let at = self.cursor(field).follow(self.required(field)?)?;
        Table::at(name, self.body, at)
    }

    /// A struct of `N` bytes, stored inline.
    pub fn inline<const N: usize>(&self, field: Field) -> Result<Option<[u8; N]>, WireError> {
        self.scalar(field)
    }

    /// A vector that must be there, with every element checked.
    pub fn list<T: Element<'a>>(&self, field: Field) -> Result<List<'a, T>, WireError> {
        let cursor = self.cursor(field);
        let at = cursor.follow(self.required(field)?)?;
        let length = cursor.u32(at)? as usize;
        // The count is a u32 and elements are at most 80 bytes, so the product fits.
        cursor.bytes(at + 4, length * T::INLINE_BYTES)?;
        List::checked(cursor, at + 4, length)
    }
}
