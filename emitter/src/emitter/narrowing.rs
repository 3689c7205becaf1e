//! The methods that say who shall receive, and how: the same ones wherever there is a target.

/// Methods for a type with a field `target`.
macro_rules! narrowing {
    () => {
        /// Adds rooms. With several, whoever is in any of them receives, once. A socket's id is the
        /// name of a room with that socket alone.
        pub fn to(mut self, rooms: impl roomcast_protocol::target::Rooms) -> Self {
            self.target.add_rooms(rooms);
            self
        }

        /// Adds rooms; the same as [`to`](Self::to).
        pub fn in_(self, rooms: impl roomcast_protocol::target::Rooms) -> Self {
            self.to(rooms)
        }

        /// Leaves out whoever is in one of these rooms.
        pub fn except(mut self, rooms: impl roomcast_protocol::target::Rooms) -> Self {
            self.target.add_except(rooms);
            self
        }

        /// Drops the packet for clients whose transport cannot be written right now.
        pub fn volatile(mut self) -> Self {
            self.target.flags.volatile = true;
            self
        }

        /// A wish about compressing the packet.
        pub fn compress(mut self, compress: bool) -> Self {
            self.target.flags.compress = Some(compress);
            self
        }

        /// How long to wait for acknowledgements and for the answers of nodes. Default 5 s.
        pub fn timeout(mut self, timeout: std::time::Duration) -> Self {
            self.target.flags.timeout = Some(timeout);
            self
        }
    };
}

pub(crate) use narrowing;
