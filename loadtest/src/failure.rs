//! Failures that prevent a run, with their exit status.

use std::fmt;

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The arguments are wrong, contradict each other or exceed this machine.
    Arguments(String),
    /// The connection to a target failed.
    Unreachable(String),
    /// A target is not a Socket.IO server of revision 5.
    NotSocketIo(String),
}

impl Failure {
    pub(crate) fn status(&self) -> u8 {
        match self {
            Self::Arguments(_) => 2,
            Self::Unreachable(_) => 1,
            Self::NotSocketIo(_) => 3,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Arguments(said) | Self::Unreachable(said) | Self::NotSocketIo(said)) = self;
        formatter.write_str(said)
    }
}

impl std::error::Error for Failure {}
