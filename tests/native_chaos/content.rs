//! What is in an object follows from its id alone, so that everybody can tell whether it is right.

use raylet_transport::ids::ObjectId;

/// Names that all clients make, and get from each other.
pub const COMMON: u64 = 48;

/// Chance that can be repeated (splitmix64).
pub struct Chance(pub u64);

impl Chance {
    /// Any number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Less than `limit`, which is not 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// True once in so many times.
    pub fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }
}

/// One of the names that all clients make.
pub fn common(number: u64) -> ObjectId {
    let mut id = [0xc0; ObjectId::LEN];
    id[..8].copy_from_slice(&Chance(number % COMMON).next().to_le_bytes());
    ObjectId(id)
}

fn chance_of(id: ObjectId) -> Chance {
    let words = id.0.chunks(8).map(|word| word.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)));
    Chance(words.fold(0, |seed, word| Chance(seed ^ word).next()))
}

/// Bytes of data and of metadata.
pub fn lengths(id: ObjectId) -> (usize, usize) {
    let mut chance = chance_of(id);
    let longest = match chance.below(100) {
        0..5 => 1,
        5..60 => 1 << 10,
        60..85 => 16 << 10,
        // Some are too long for a run of memory.
        85..97 => 80 << 10,
        _ => 1 << 20,
    };
    (chance.below(longest) as usize, chance.below(24) as usize)
}

/// The data and metadata of an object.
pub fn content(id: ObjectId) -> (Vec<u8>, Vec<u8>) {
    let (data, metadata) = lengths(id);
    let mut chance = Chance(chance_of(id).next() ^ 1);
    let mut bytes: Vec<u8> = Vec::with_capacity(data + metadata + 8);
    while bytes.len() < data + metadata {
        bytes.extend_from_slice(&chance.next().to_le_bytes());
    }
    bytes.truncate(data + metadata);
    let metadata = bytes.split_off(data);
    (bytes, metadata)
}

/// Every byte is as it should be.
pub fn verify(id: ObjectId, data: &[u8], metadata: &[u8]) {
    let (right_data, right_metadata) = content(id);
    for (what, got, right) in [("data", data, &right_data), ("metadata", metadata, &right_metadata)] {
        assert_eq!(got.len(), right.len(), "length of the {what} of {id}");
        let wrong = got.iter().zip(right).position(|(got, right)| got != right);
        assert_eq!(wrong, None, "the first wrong byte in the {what} of {id}, of {} bytes", got.len());
    }
}
