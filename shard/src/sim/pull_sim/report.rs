//! What a run tried.

/// What was tried.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Steps taken.
    pub steps: u64,
    /// Worlds.
    pub worlds: u64,
    /// Nodes of the largest one.
    pub nodes_most: u64,
    /// Objects received whole.
    pub received: u64,
    /// Wishes fulfilled.
    pub fulfilled: u64,
    /// Chunks lost, repeated or spoilt.
    pub harmed: u64,
    /// Chunks that were not used.
    pub dropped: u64,
    /// Creates without room.
    pub no_room: u64,
    /// Fetches given up for something else, or because nobody wanted them.
    pub stopped: u64,
    /// Copies evicted.
    pub evicted: u64,
    /// Objects made again after their node had died.
    pub remade: u64,
    /// Nodes that died.
    pub died: u64,
    /// Chunks that landed in place.
    pub landed: u64,
    /// Lanes that broke.
    pub broken: u64,
    /// Nodes that were asked because they probably had an object.
    pub guessed: u64,
    /// Chunks that waited on their lane for memory.
    pub held: u64,
    /// Objects written to disk.
    pub spilled: u64,
    /// Objects read back.
    pub restored: u64,
    /// Writes that found the disk full.
    pub disk_full: u64,
    /// Objects sent from their files.
    pub file_sent: u64,
    /// Files that were not as they were written.
    pub files_lost: u64,
    /// Nodes that were sent to another one that was being sent the object.
    pub elsewhere: u64,
    /// Chunks that were sent on before all of their object was there.
    pub relayed: u64,
    /// Objects that were given up while they were being sent on.
    pub recalled: u64,
}

impl Report {
    pub(super) fn add(&mut self, other: &Self) {
        let Report {
            steps,
            worlds,
            nodes_most,
            received,
            fulfilled,
            harmed,
            dropped,
            no_room,
            stopped,
            evicted,
            remade,
            died,
            landed,
            broken,
            guessed,
            held,
            spilled,
            restored,
            disk_full,
            file_sent,
            files_lost,
            elsewhere,
            relayed,
            recalled,
        } = other;
        self.steps += steps;
        self.worlds += worlds;
        self.nodes_most = self.nodes_most.max(*nodes_most);
        self.received += received;
        self.fulfilled += fulfilled;
        self.harmed += harmed;
        self.dropped += dropped;
        self.no_room += no_room;
        self.stopped += stopped;
        self.evicted += evicted;
        self.remade += remade;
        self.died += died;
        self.landed += landed;
        self.broken += broken;
        self.guessed += guessed;
        self.held += held;
        self.spilled += spilled;
        self.restored += restored;
        self.disk_full += disk_full;
        self.file_sent += file_sent;
        self.files_lost += files_lost;
        self.elsewhere += elsewhere;
        self.relayed += relayed;
        self.recalled += recalled;
    }
}
