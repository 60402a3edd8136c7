//! A child process that is asked in lines and answers in lines. Threads of its own write, read and listen, so that full pipes
//! never stop both sides; it leads a process group, and what is left of the group is killed when this value goes.

use crate::{Result, interrupt};
use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{self, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Bytes of an answer at most; a longer one is cut there, and then is no number.
const LINE: u64 = 1 << 20;
/// Answers that wait to be read.
const WAITING: usize = 1024;
/// Last lines of what it says on its standard error, and bytes of each.
const SAID: (usize, u64) = (8, 400);
/// How long a child may take to end by itself once its input is closed.
const GRACE: Duration = Duration::from_millis(300);
/// How often a wait looks for a signal.
const TICK: Duration = Duration::from_millis(20);

/// A running child.
pub(super) struct Child {
    process: process::Child,
    /// None once the input is closed.
    requests: Option<Sender<Vec<u8>>>,
    answers: Receiver<String>,
    said: Arc<Mutex<VecDeque<String>>>,
    listener: JoinHandle<()>,
    status: Option<ExitStatus>,
}

/// What a wait for an answer met.
pub(super) enum Next {
    /// A line, without its end.
    Line(String),
    /// Nothing until the deadline.
    Late,
    /// The child closed its output.
    Ended,
}

impl Child {
    /// Starts a program with arguments.
    pub(super) fn start(words: &[String]) -> io::Result<Child> {
        let (program, arguments) = words.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut process = command.spawn()?;
        let pipes = (process.stdin.take(), process.stdout.take(), process.stderr.take());
        let (Some(stdin), Some(stdout), Some(stderr)) = pipes else { return Err(io::ErrorKind::BrokenPipe.into()) };
        let (requests, batches) = mpsc::channel();
        let (lines, answers) = mpsc::sync_channel(WAITING);
        let said = Arc::new(Mutex::new(VecDeque::new()));
        thread::spawn(move || write(stdin, batches));
        thread::spawn(move || read(stdout, lines));
        let tail = said.clone();
        let listener = thread::spawn(move || listen(stderr, &tail));
        Ok(Child { process, requests: Some(requests), answers, said, listener, status: None })
    }

    /// Hands a batch of lines over to be written; that nobody reads them is seen in the answers.
    pub(super) fn send(&self, batch: Vec<u8>) {
        if let Some(requests) = &self.requests {
            let _ = requests.send(batch);
        }
    }

    /// The next answer. An error is a signal to this process.
    pub(super) fn next(&self, deadline: Instant) -> Result<Next> {
        loop {
            interrupt::check()?;
            let left = deadline.saturating_duration_since(Instant::now());
            match self.answers.recv_timeout(left.min(TICK)) {
                Ok(line) => return Ok(Next::Line(line)),
                Err(RecvTimeoutError::Disconnected) => return Ok(Next::Ended),
                Err(RecvTimeoutError::Timeout) if left.is_zero() => return Ok(Next::Late),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// Ends it and tells how it ended and what it last said.
    pub(super) fn end(mut self) -> String {
        let ended = self.status_within(GRACE).is_some();
        self.stop();
        let until = Instant::now() + GRACE;
        while !self.listener.is_finished() && Instant::now() < until {
            thread::sleep(Duration::from_millis(1));
        }
        let status = self.status.map_or("no exit status".to_string(), |s| s.to_string());
        let how = if ended { status } else { "it was killed".to_string() };
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        match said.is_empty() {
            true => format!("{how}, it said nothing on its standard error"),
            false => format!("{how}, it said: {}", said.iter().map(String::as_str).collect::<Vec<_>>().join(" | ")),
        }
    }

    fn status_within(&mut self, wait: Duration) -> Option<ExitStatus> {
        let until = Instant::now() + wait;
        while self.status.is_none() {
            self.status = self.process.try_wait().ok().flatten();
            if self.status.is_some() || Instant::now() >= until {
                break;
            }
            thread::sleep(Duration::from_millis(2));
        }
        self.status
    }

    /// Closes its input, leaves it a moment, kills what is left, reaps it.
    fn stop(&mut self) {
        self.requests = None;
        if self.status_within(GRACE).is_none() {
            kill(&mut self.process);
            self.status = self.process.wait().ok();
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Kills the whole group: a program that a wrapper started would otherwise live on.
fn kill(process: &mut process::Child) {
    #[cfg(unix)]
    if let Ok(id) = i32::try_from(process.id()) {
        let _ = nix::sys::signal::killpg(nix::unistd::Pid::from_raw(id), nix::sys::signal::Signal::SIGKILL);
    }
    let _ = process.kill();
}

fn write(mut stdin: ChildStdin, batches: Receiver<Vec<u8>>) {
    for batch in batches {
        if stdin.write_all(&batch).and_then(|()| stdin.flush()).is_err() {
            break;
        }
    }
}

fn read(stdout: ChildStdout, lines: SyncSender<String>) {
    let mut stdout = BufReader::new(stdout);
    while let Some(line) = line(&mut stdout, LINE) {
        if lines.send(line).is_err() {
            break;
        }
    }
}

fn listen(stderr: ChildStderr, said: &Mutex<VecDeque<String>>) {
    let mut stderr = BufReader::new(stderr);
    while let Some(line) = line(&mut stderr, SAID.1) {
        let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.len() == SAID.0 {
            said.pop_front();
        }
        if !line.trim().is_empty() {
            said.push_back(line);
        }
    }
}

/// The next line, without its end, or so many bytes of it.
fn line(from: &mut impl BufRead, most: u64) -> Option<String> {
    let mut bytes = Vec::new();
    let read = from.take(most).read_until(b'\n', &mut bytes).ok()?;
    (read > 0).then(|| String::from_utf8_lossy(&bytes).trim_end_matches(['\n', '\r']).to_string())
}
