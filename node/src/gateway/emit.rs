//! `roomcast emit`: messages to the clients of a cluster from a shell, a script or a cron job.
//!
//! It uses the library's emitter. It reads messages, emits them, and reports the result as text, as
//! JSON and as an exit status.
//!
//! Messages of a file are published in batches, as many as the buffer has, so that a
//! slow source is emitted at once and a fast one costs few round trips. The first
//! failure ends the command, with the number of its line, so that a script can continue from there.

mod messages;
mod outcome;
mod progress;

use std::{path::PathBuf, process::ExitCode};

use clap::{Arg, Args, Command};
use roomcast::emitter::{
    EmitError, Emitter, Retry,
    blocking::{self, BroadcastOperator},
    protocol::event::is_reserved,
};

use self::{
    messages::{Lines, Message, Source},
    outcome::{Failure, Tally, conclude},
    progress::Progress,
};
use super::{redis::RedisOptions, values::Span};

/// Maximum number of messages that are published together.
/// It limits the number of unconfirmed messages when the command fails.
const MAX_BATCH: usize = 512;

const EXIT_STATUS: &str = "\
Examples:
  roomcast emit --redis redis://localhost --room news headline '\"It rains\"'
  roomcast emit --redis redis://localhost progress '{\"job\":7}' 0.5 --confirm --json
  produce-lines | roomcast emit --redis redis://localhost tick -

Exit status:
   0  Redis has taken all messages, and at least one node has taken one; with --confirm, at least
      one socket was reached and no node was silent; with --ack, all sockets have answered
   1  another failure, such as a file that cannot be read
   2  wrong options
   3  the name of the event is reserved
   4  invalid JSON
   5  the namespace does not begin with /
   6  Redis cannot be reached; nothing was emitted by the message that failed
   7  Redis refuses: password, permission, or not what the URL says
   8  Redis did not confirm: the message may have been emitted or not
   9  the message had no recipient: no node or, with --confirm or --ack, no socket
  10  with --confirm or --ack: nodes were silent, or sockets did not answer";

/// The options of `roomcast emit`.
#[derive(Args, Clone, Debug)]
#[command(after_long_help = EXIT_STATUS)]
pub(crate) struct EmitOptions {
    /// Name of the event
    ///
    /// It is optional with --file. Each line is then
    /// {"event":…,"args":[…],"rooms":[…],"except":[…]}, and only the event is required. A
    /// `-` alone is the same as --file -
    #[arg(value_name = "EVENT", required_unless_present = "file")]
    event: Option<String>,

    /// Arguments of the event, each a JSON value; a single `-` is the same as --file -
    #[arg(value_name = "JSON", conflicts_with = "file")]
    #[arg(allow_negative_numbers = true)]
    arguments: Vec<String>,

    /// File with one message per line, `-` for standard input
    ///
    /// With an EVENT, each line is a JSON value, which is its one argument. Empty lines
    /// are skipped. The command stops at the first line that cannot be emitted and
    /// reports its number.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,

    /// Namespace, with its slash
    #[arg(long, value_name = "NAME", default_value = "/")]
    namespace: String,

    /// Only clients in this room; repeat the flag for several
    #[arg(long, value_name = "NAME", allow_hyphen_values = true, value_parser = room)]
    room: Vec<String>,

    /// No clients in this room; repeat the flag for several
    #[arg(long, value_name = "NAME", allow_hyphen_values = true, value_parser = room)]
    except: Vec<String>,

    /// Drop the message for clients that cannot receive right now
    #[arg(long)]
    volatile: bool,

    /// Let clients acknowledge the message; a client that comes back without having done so
    /// receives it again
    ///
    /// The namespace needs recovery with at_least_once turned on. The acknowledgements are not printed.
    #[arg(long, conflicts_with_all = ["volatile", "ack", "file"])]
    at_least_once: bool,

    /// Wait until all nodes have reported how many sockets the message reached
    #[arg(long)]
    confirm: bool,

    /// Wait for the acknowledgements of the clients and print them
    ///
    /// It cannot be combined with an idempotency key, because a repetition emits nothing and would
    /// have no acknowledgements to print.
    #[arg(long, conflicts_with_all = ["confirm", "file"])]
    ack: bool,

    /// Emit once, however often the command is repeated with this key
    ///
    /// Other emitters and the HTTP API share the key. A repetition prints the first result. With a
    /// file, the key of each message is KEY/LINE, with the number of its line, so a failed command
    /// can be repeated with the same file.
    #[arg(long, value_name = "KEY", conflicts_with = "ack")]
    idempotency_key: Option<String>,

    /// How long the result of an idempotency key is kept
    #[arg(long, value_name = "DURATION", default_value = "5m")]
    idempotency_time: Span,

    /// Time that nodes and clients have to respond with --confirm or --ack
    #[arg(long, value_name = "DURATION", default_value = "5s")]
    timeout: Span,

    /// Number of retries for messages that were certainly not published, with growing delays
    #[arg(long, value_name = "COUNT", default_value = "4")]
    #[arg(value_parser = clap::value_parser!(u32).range(..=100))]
    retry: u32,

    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    redis: RedisOptions,
}

/// Parses the name of a room. Ids of sockets may begin with a hyphen, so a value may as
/// well; the name of an option means that the value is missing.
fn room(name: &str) -> Result<String, String> {
    let options = EmitOptions::augment_args(Command::new("emit"));
    let mut longs = options.get_arguments().filter_map(Arg::get_long);
    if longs.any(|long| name.strip_prefix("--") == Some(long)) {
        return Err("this is an option: the name of the room is missing".to_owned());
    }
    Ok(name.to_owned())
}

/// Runs the command. The exit status reports the result.
pub(crate) fn emit(options: &EmitOptions) -> ExitCode {
    let mut tally = Tally::default();
    let failure = run(options, &mut tally).err();
    conclude(&tally, failure.as_ref(), options.json).into()
}

fn run(options: &EmitOptions, tally: &mut Tally) -> Result<(), Failure> {
    let (event, arguments) = (options.event.clone(), options.arguments.clone());
    let (source, event) = Source::new(event, arguments, options.file.clone());
    if !options.namespace.starts_with('/') {
        let namespace = options.namespace.as_str().into();
        return Err(EmitError::NamespaceWithoutSlash(namespace).into());
    }
    if let Some(event) = event.as_deref().filter(|event| is_reserved(event)) {
        return Err(EmitError::ReservedEvent(event.into()).into());
    }
    // Errors in the arguments are reported before a connection to Redis is opened.
    match (source, event) {
        (Source::Arguments(arguments), Some(event)) => {
            let message = messages::of_arguments(&event, &arguments)?;
            let key = options.idempotency_key.clone();
            options.emit_one(&options.connect()?, &message, key, tally)
        }
        (Source::Arguments(_), None) => {
            let problem = "the event is missing: give its name, or a file with --file";
            Err(Failure::Usage(problem.to_owned()))
        }
        (Source::StandardInput, _) if options.at_least_once || options.ack => {
            let option = if options.ack { "ack" } else { "at-least-once" };
            let problem = format!("--{option} takes one message, not a file");
            Err(Failure::Usage(problem))
        }
        (Source::StandardInput, event) => {
            options.emit_lines(&options.connect()?, Lines::of_standard_input(event), tally)
        }
        (Source::File(path), event) => {
            let lines = Lines::open(&path, event)?;
            options.emit_lines(&options.connect()?, lines, tally)
        }
    }
}

impl EmitOptions {
    fn connect(&self) -> Result<blocking::Emitter, Failure> {
        let Some(url) = &self.redis.redis.0 else {
            let problem =
                "the address of Redis is missing: give it with --redis URL or ROOMCAST_REDIS";
            return Err(Failure::Usage(problem.to_owned()));
        };
        self.redis.check().map_err(Failure::Usage)?;
        let mut builder = Emitter::builder()
            .prefix(&self.redis.redis_prefix)
            .dialect(self.redis.redis_dialect.into())
            .stream_max_len(self.redis.redis_stream_length as usize)
            .parser(self.redis.redis_parser.into())
            .count_members(true)
            .idempotency_time(self.idempotency_time.0)
            .retry(Retry::default().tries(self.retry + 1));
        if let Some(stream) = self.redis.stream() {
            builder = builder.stream(stream);
        }
        if let Some(signing) = self.redis.signing() {
            builder = builder.signing(signing);
        }
        Ok(blocking::Emitter::connect_with(builder, url.clone())?)
    }

    fn emit_one(
        &self,
        emitter: &blocking::Emitter,
        message: &Message,
        key: Option<String>,
        tally: &mut Tally,
    ) -> Result<(), Failure> {
        let Message { event, args, .. } = message;
        let mut to = self.operator(emitter, message);
        if let Some(key) = key {
            to = to.idempotency_key(key);
        }
        if self.at_least_once {
            to = to.at_least_once();
        }
        if self.ack {
            tally.acknowledged(to.emit_with_ack(event, args)?);
        } else if self.confirm {
            tally.confirmed(to.emit_confirmed(event, args)?);
        } else {
            tally.delivered(to.emit(event, args)?);
        }
        Ok(())
    }

    fn emit_lines(
        &self,
        emitter: &blocking::Emitter,
        mut lines: Lines,
        tally: &mut Tally,
    ) -> Result<(), Failure> {
        let mut progress = Progress::new(!self.json);
        let mut pending = Vec::new();
        loop {
            let next = lines.next();
            let failed = match next {
                Some(Ok(message)) => {
                    pending.push((lines.number, message));
                    if lines.has_more_at_hand() && pending.len() < MAX_BATCH {
                        continue;
                    }
                    None
                }
                Some(Err(failure)) => Some(failure.in_line(lines.number)),
                None => {
                    return self.emit_many(emitter, &mut pending, tally);
                }
            };
            self.emit_many(emitter, &mut pending, tally)?;
            if let Some(failure) = failed {
                return Err(failure);
            }
            progress.show(tally.messages, lines.read_bytes, lines.total_bytes);
        }
    }

    /// Emits messages together, or one by one with --confirm and --ack.
    fn emit_many(
        &self,
        emitter: &blocking::Emitter,
        pending: &mut Vec<(usize, Message)>,
        tally: &mut Tally,
    ) -> Result<(), Failure> {
        // Each asks all nodes, so there is nothing to gather.
        if self.confirm {
            for (line, message) in pending.drain(..) {
                let emitted = self.emit_one(emitter, &message, self.key_of(line), tally);
                emitted.map_err(|failure| failure.in_line(line))?;
            }
            return Ok(());
        }
        let mut batch = emitter.batch();
        let mut numbers = Vec::with_capacity(pending.len());
        let mut wrong = None;
        for (line, message) in pending.drain(..) {
            match self.add(&mut batch, &message, self.key_of(line)) {
                Ok(()) => numbers.push(line),
                Err(error) => {
                    wrong = Some(Failure::from(error).in_line(line));
                    break;
                }
            }
        }
        // All replies are awaited, because messages after the failed one may have been published.
        let mut failed = None;
        for (line, delivery) in numbers.into_iter().zip(batch.send()) {
            match delivery {
                Ok(delivery) => tally.delivered(delivery),
                Err(error) if failed.is_none() => {
                    failed = Some(Failure::from(error).in_line(line));
                }
                Err(_) => {}
            }
        }
        failed.or(wrong).map_or(Ok(()), Err)
    }

    /// The idempotency key of a line.
    fn key_of(&self, line: usize) -> Option<String> {
        let key = self.idempotency_key.as_ref()?;
        Some(format!("{key}/{line}"))
    }

    fn add(
        &self,
        batch: &mut blocking::Batch,
        message: &Message,
        key: Option<String>,
    ) -> Result<(), EmitError> {
        let to = batch.of(&self.namespace).to(&self.room).to(&message.rooms);
        let to = to.except(&self.except).except(&message.except);
        let to = if self.volatile { to.volatile() } else { to };
        let to = match key {
            Some(key) => to.idempotency_key(key),
            None => to,
        };
        to.emit(&message.event, &message.args)
    }

    fn operator(&self, emitter: &blocking::Emitter, message: &Message) -> BroadcastOperator {
        let to = emitter
            .of(&self.namespace)
            .to(&self.room)
            .to(&message.rooms);
        let to = to.except(&self.except).except(&message.except);
        let to = if self.volatile { to.volatile() } else { to };
        to.timeout(self.timeout.0)
    }
}
