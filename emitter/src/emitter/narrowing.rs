//! The methods that select sockets: the same ones wherever there is a target.

/// Methods for a type whose target is at this place.
macro_rules! narrowing {
    ($($target:ident).+) => {
        /// Selects the sockets in these rooms, in addition to those selected before. A
        /// socket in several of them receives a message once. A socket's id is the name
        /// of a room with only that socket.
        pub fn to(mut self, rooms: impl roomcast_protocol::target::Rooms) -> Self {
            self.$($target).+.add_rooms(rooms);
            self
        }

        /// The same as [`to`](Self::to).
        pub fn in_(self, rooms: impl roomcast_protocol::target::Rooms) -> Self {
            self.to(rooms)
        }

        /// Excludes the sockets in any of these rooms.
        pub fn except(mut self, rooms: impl roomcast_protocol::target::Rooms) -> Self {
            self.$($target).+.add_except(rooms);
            self
        }

        /// Drops the packet for clients that cannot receive right now.
        pub fn volatile(mut self) -> Self {
            self.$($target).+.flags.volatile = true;
            self
        }

        /// Asks servers that support it to compress the packet, or not to.
        pub fn compress(mut self, compress: bool) -> Self {
            self.$($target).+.flags.compress = Some(compress);
            self
        }

        /// Sets the timeout for acknowledgements and for responses of nodes. Default 5 s.
        pub fn timeout(mut self, timeout: std::time::Duration) -> Self {
            self.$($target).+.flags.timeout = Some(timeout);
            self
        }
    };
}

pub(crate) use narrowing;
