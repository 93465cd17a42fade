//! The layouts of messages as the compiler made them, for the protocol's description.

/// A field of an archived struct.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FieldLayout {
    /// Its name.
    pub name: &'static str,
    /// Its type, as written.
    pub kind: &'static str,
    /// Where it starts, from the start of the struct.
    pub offset_bytes: usize,
    /// How much it takes there; what a `Vec` or `String` holds lies in front of the struct.
    pub size_bytes: usize,
}

/// A struct that travels.
pub trait Layout {
    /// Its name.
    const NAME: &'static str;
    /// Its size.
    const SIZE_BYTES: usize;
    /// Its fields, in the order of declaration.
    const FIELDS: &'static [FieldLayout];
}

/// [`Layout`] as a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StructLayout {
    /// Its name.
    pub name: &'static str,
    /// Its size.
    pub size_bytes: usize,
    /// Its fields.
    pub fields: &'static [FieldLayout],
}

impl StructLayout {
    /// The layout of a type.
    pub const fn of<T: Layout>() -> Self {
        Self { name: T::NAME, size_bytes: T::SIZE_BYTES, fields: T::FIELDS }
    }
}
