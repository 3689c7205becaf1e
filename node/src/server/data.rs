//! Values that an application attaches to a socket.

use std::{
    any::{Any, TypeId},
    collections::{HashMap, HashSet},
    sync::Arc,
};

use serde::Serialize;

use super::socket::Socket;

/// A value that can be attached to a socket. Other nodes see its JSON when they fetch sockets.
///
/// Implemented for every type that implements `Serialize`.
pub trait Data: Any + Send + Sync {
    /// Returns the value as JSON, or `null` if it has no JSON form.
    fn to_json(&self) -> serde_json::Value;
}

impl<T: Serialize + Any + Send + Sync> Data for T {
    fn to_json(&self) -> serde_json::Value {
        serde_json::to_value(self).unwrap_or_default()
    }
}

/// Values that the application has attached to a socket.
#[derive(Default)]
pub(super) struct Attached {
    data: Option<Arc<dyn Data>>,
    /// In few sockets.
    more: Option<Box<More>>,
}

/// Boxed as a whole: most sockets have only their data.
#[derive(Default)]
struct More {
    values: HashMap<TypeId, Arc<dyn Any + Send + Sync>>,
    /// The events whose handler runs once and has run.
    first_events: HashSet<Box<str>>,
    /// The rooms at the time of the disconnect.
    last_rooms: Option<Vec<String>>,
}

impl From<Option<Arc<dyn Data>>> for Attached {
    fn from(data: Option<Arc<dyn Data>>) -> Self {
        Self { data, more: None }
    }
}

impl Socket {
    /// Returns the data of the socket if it has this type.
    /// [`authorize`](super::Namespace::authorize) and [`set_data`](Self::set_data) set it.
    pub fn data<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        let data = self.0.attached.lock().data.clone()?;
        let any: Arc<dyn Any + Send + Sync> = data;
        any.downcast().ok()
    }

    /// Replaces the data of the socket. Other nodes see its JSON.
    pub fn set_data(&self, data: impl Data) {
        // Dropped without the lock, because it may run code of the application.
        let earlier = self.0.attached.lock().data.replace(Arc::new(data));
        drop(earlier);
        self.session_changed();
    }

    /// Attaches a value to the socket, one of each type. Other nodes do not see it. A
    /// second value of the same type replaces the first, which is returned.
    pub fn attach<T: Any + Send + Sync>(&self, value: T) -> Option<Arc<T>> {
        let mut attached = self.0.attached.lock();
        let values = &mut attached.more.get_or_insert_default().values;
        let earlier = values.insert(TypeId::of::<T>(), Arc::new(value))?;
        drop(attached);
        earlier.downcast().ok()
    }

    /// Returns the value of this type that [`attach`](Self::attach) has attached.
    pub fn attached<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        let attached = self.0.attached.lock();
        let value = attached.more.as_ref()?.values.get(&TypeId::of::<T>())?;
        Arc::clone(value).downcast().ok()
    }

    pub(super) fn data_json(&self) -> serde_json::Value {
        let data = self.0.attached.lock().data.clone();
        data.map_or_else(
            || serde_json::Value::Object(serde_json::Map::new()),
            |d| d.to_json(),
        )
    }

    /// The rooms at the time of the disconnect, while its handler runs.
    pub(super) fn last_rooms(&self) -> Option<Vec<String>> {
        let attached = self.0.attached.lock();
        attached.more.as_ref()?.last_rooms.clone()
    }

    /// Keeps the rooms for the handler of the disconnect.
    pub(super) fn keep_last_rooms(&self) {
        let rooms = self.rooms();
        let mut attached = self.0.attached.lock();
        attached.more.get_or_insert_default().last_rooms = Some(rooms);
    }

    /// Removes them after the handler of the disconnect.
    pub(super) fn forget_last_rooms(&self) {
        if let Some(more) = &mut self.0.attached.lock().more {
            more.last_rooms = None;
        }
    }

    /// Returns `true` for the first event of this name whose handler runs once.
    pub(super) fn is_first(&self, event: &str) -> bool {
        let mut attached = self.0.attached.lock();
        let events = &mut attached.more.get_or_insert_default().first_events;
        events.insert(event.into())
    }
}
