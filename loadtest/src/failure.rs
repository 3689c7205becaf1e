//! Failures that prevent a run, with their exit status.

use std::fmt;

use crate::target::TargetError;

#[derive(Debug)]
pub(crate) enum Failure {
    /// The arguments contradict each other or exceed this machine.
    Arguments(String),
    Target(TargetError),
}

impl Failure {
    pub(crate) fn status(&self) -> u8 {
        match self {
            Self::Arguments(_) | Self::Target(TargetError::Address(_)) => 2,
            Self::Target(TargetError::Unreachable(_)) => 1,
            Self::Target(TargetError::NotSocketIo(_)) => 3,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Arguments(said)
            | Self::Target(
                TargetError::Address(said)
                | TargetError::Unreachable(said)
                | TargetError::NotSocketIo(said),
            ) => formatter.write_str(said),
        }
    }
}

impl std::error::Error for Failure {}
