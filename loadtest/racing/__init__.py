"""The race of Roomcast against other servers; `loadtest/race` runs it."""
