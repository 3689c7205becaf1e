//! The nodes that have members of each room, in Redis: a set of rooms for each node, and
//! for each room the number of nodes.
//!
//! A script changes both and so sees which change is the first or the last in the
//! cluster. In the same step it stores the report for the application, with the records of the
//! node, so that it is sent even if the node dies at once. The rooms of a node whose lease has
//! expired are taken out one by one by another node.
//!
//! `seq` orders the changes of a room that several nodes report: it is the time of Redis in
//! microseconds, or one more than the last if that is later.

use roomcast::emitter::redis::{PublishError, Reply};

use super::{super::Hooks, BATCH, KEPT, Link, Record, Store};

/// Returns the records of those changes that are the first or the last in the cluster.
///
/// A change whose id has a record already was made by an attempt whose reply was lost.
const CHANGE: &str = "
local time = redis.call('TIME')
local seq = math.max(time[1] * 1000000 + time[2], (tonumber(redis.call('GET', KEYS[4])) or 0) + 1)
local records = {}
for i = 2, #ARGV, 5 do
  local kind, room, id = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local record = redis.call('HGET', KEYS[3], id)
  if not record then
    local is_change
    if kind == 'occupied' then
      is_change = redis.call('SADD', KEYS[1], room) == 1 and redis.call('HINCRBY', KEYS[2], room, 1) == 1
    else
      local is_known = redis.call('SREM', KEYS[1], room) == 1
      local left
      if is_known then
        left = redis.call('HINCRBY', KEYS[2], room, -1)
      else
        left = tonumber(redis.call('HGET', KEYS[2], room)) or 0
      end
      if left <= 0 then redis.call('HDEL', KEYS[2], room) end
      is_change = left <= 0 and (is_known or kind == 'vacated')
    end
    if is_change then
      record = ARGV[i + 3] .. string.format('%.0f', seq) .. ARGV[i + 4]
      seq = seq + 1
      redis.call('HSET', KEYS[3], id, record)
    end
  end
  if record then records[#records + 1] = record end
end
redis.call('SET', KEYS[4], string.format('%.0f', seq), 'PX', ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[1])
redis.call('PEXPIRE', KEYS[2], ARGV[1])
return records
";

/// A room that has got its first member on a node, or lost its last one.
#[derive(Clone, Debug)]
pub(in super::super) struct Update {
    pub(in super::super) kind: Kind,
    /// The room with its hook and namespace.
    pub(in super::super) room: String,
    /// The same for all attempts.
    pub(in super::super) id: String,
    /// The JSON of the record, before and after the number.
    pub(in super::super) record: (String, String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Kind {
    Occupied,
    Vacated,
    /// It may be that Redis never knew that it was occupied. Then no report is sent.
    PerhapsVacated,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::Occupied => "occupied",
            Self::Vacated => "vacated",
            Self::PerhapsVacated => "perhaps vacated",
        }
    }
}

impl Link {
    fn rooms_of(&self, node: &str) -> String {
        format!("{}rooms:{node}", self.prefix)
    }

    /// The keys that the renewal of the lease keeps.
    pub(super) fn kept(&self) -> [String; 2] {
        [self.rooms_of(&self.node), self.counts()]
    }

    fn counts(&self) -> String {
        format!("{}rooms", self.prefix)
    }

    async fn change(&self, node: &str, updates: &[Update]) -> Result<Vec<Record>, PublishError> {
        let (rooms, counts, seq) = (
            self.rooms_of(node),
            self.counts(),
            format!("{}seq", self.prefix),
        );
        let mut command = vec!["EVAL", CHANGE, "4", &rooms, &counts, &self.own, &seq, KEPT];
        for update in updates {
            let (before, after) = &update.record;
            command.extend([update.kind.word(), &update.room, &update.id, before, after]);
        }
        let reply = self.command(&command).await?;
        let records = reply.as_ref().and_then(Reply::list).unwrap_or_default();
        let records = records.iter().filter_map(Reply::text);
        Ok(records
            .filter_map(|json| serde_json::from_str(json).ok())
            .collect())
    }
}

impl Store {
    /// Changes the rooms of this node. Returns the report for the application, which is stored
    /// until it is [removed](Store::remove).
    pub(in super::super) async fn change_rooms(
        &self,
        updates: &[Update],
    ) -> Result<Vec<Record>, PublishError> {
        let Some(link) = self.link.get() else {
            return Ok(Vec::new());
        };
        link.is_up().await;
        let records = link.change(&link.node, updates).await;
        match &records {
            // They are in Redis already; they are known here in case Redis loses them.
            Ok(records) => records.iter().for_each(|record| self.put(record)),
            Err(error) => self.failed(&error.to_string()),
        }
        records
    }

    /// Takes the rooms of a dead node out.
    pub(super) async fn sweep_rooms(
        &self,
        link: &Link,
        dead: &str,
        hooks: &Hooks,
    ) -> Result<(), PublishError> {
        let (rooms, count) = (link.rooms_of(dead), BATCH.to_string());
        loop {
            let reply = link.command(&["SRANDMEMBER", &rooms, &count]).await?;
            let names = reply.as_ref().and_then(Reply::list).unwrap_or_default();
            let updates = names
                .iter()
                .filter_map(Reply::text)
                .filter_map(|room| hooks.room_update(room, Kind::PerhapsVacated, hooks.next_id()));
            let updates: Vec<_> = updates.collect();
            if updates.is_empty() {
                return Ok(());
            }
            for record in link.change(dead, &updates).await? {
                self.put(&record);
                hooks.adopt(record);
            }
        }
    }
}
