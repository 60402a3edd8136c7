//! One call of the program.

use anyhow::{Context, Result, ensure};
use std::ffi::OsStr;
use std::io::Write;
use std::process::{Command, Output, Stdio};

/// The program with a command; keys follow.
#[derive(Debug)]
pub struct Ple(Command);

/// How it ended and what it said.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

/// A call of `ple` that has these words, parted by spaces.
pub fn ple(words: &str) -> Ple {
    Ple(command(env!("CARGO_BIN_EXE_ple-tested"))).and(words)
}

/// Without what would make a caught panic of a library speak.
fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env_remove("RUST_BACKTRACE");
    command
}

impl Ple {
    /// Adds words, parted by spaces.
    pub fn and(mut self, words: &str) -> Ple {
        self.0.args(words.split_whitespace());
        self
    }

    /// Adds `--name value`.
    pub fn key(mut self, name: &str, value: impl AsRef<OsStr>) -> Ple {
        self.0.arg(format!("--{name}")).arg(value);
        self
    }

    /// Runs it in this folder.
    pub fn within(mut self, folder: &std::path::Path) -> Ple {
        self.0.current_dir(folder);
        self
    }

    /// Forces an instruction set.
    pub fn simd(mut self, isa: impl ToString) -> Ple {
        self.0.env("PLE_SIMD", isa.to_string());
        self
    }

    /// Sets a variable of its environment.
    pub fn variable(mut self, name: &str, value: impl AsRef<OsStr>) -> Ple {
        self.0.env(name, value);
        self
    }

    /// Lets the loader look for libraries in this folder first.
    pub fn libraries(mut self, folder: &std::path::Path) -> Ple {
        self.0.env("LD_LIBRARY_PATH", folder);
        self
    }

    /// No file may grow beyond so many KiB; a write that would meets an error.
    #[cfg(target_os = "linux")]
    pub fn limited(self, kib: u32) -> Ple {
        let mut limited = command("sh");
        limited.args(["-c", "trap '' XFSZ; ulimit -f $0; exec \"$@\""]).arg((2 * kib).to_string());
        limited.arg(self.0.get_program()).args(self.0.get_args());
        Ple(limited)
    }

    /// Runs it to its end with nobody to read what it prints.
    pub fn unread(mut self) -> Result<Said> {
        let mut child = self.0.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        drop(child.stdout.take());
        self.said(child.wait_with_output()?)
    }

    /// Begins it and returns once it listens to signals.
    #[cfg(target_os = "linux")]
    pub fn begin(mut self) -> Result<Begun> {
        let child = self.0.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let status = format!("/proc/{}/status", child.id());
        let begun = Begun { call: self, child };
        // SigCgt is a mask in hexadecimal; bit 1 is SIGINT.
        let caught = |line: &str| line.strip_prefix("SigCgt:").and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
        begun.wait_until(|| {
            let text = std::fs::read_to_string(&status).unwrap_or_default();
            text.lines().find_map(caught).is_some_and(|mask| mask & 2 != 0)
        })
    }

    /// Runs it to its end.
    pub fn end(mut self) -> Result<Said> {
        let output = self.0.output().with_context(|| format!("{:?}", self.0))?;
        self.said(output)
    }

    /// Runs it to its end over this standard input; it must succeed and have no complaint.
    pub fn fed(self, input: impl AsRef<[u8]>) -> Result<Said> {
        let shown = format!("{:?}", self.0);
        let said = self.over(input)?;
        ensure!(said.code == 0 && said.err.is_empty(), "{shown}: exit code {}: {}", said.code, said.err);
        Ok(said)
    }

    /// The same, however it ends.
    pub fn over(mut self, input: impl AsRef<[u8]>) -> Result<Said> {
        let mut child = self.0.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        // One that ends before it has read everything is content.
        let _ = child.stdin.take().context("standard input")?.write_all(input.as_ref());
        self.said(child.wait_with_output()?)
    }

    /// Runs it to the end that something else makes of it.
    #[cfg(target_os = "linux")]
    pub fn killed(mut self) -> Result<()> {
        let output = self.0.output().with_context(|| format!("{:?}", self.0))?;
        let signal = std::os::unix::process::ExitStatusExt::signal(&output.status);
        ensure!(signal == Some(9) && output.stderr.is_empty(), "{:?}: {output:?}", self.0);
        Ok(())
    }

    /// That it never panics holds for every call.
    fn said(&self, output: Output) -> Result<Said> {
        let [out, err] = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let code = output.status.code().with_context(|| format!("{:?} ended by a signal: {err}", self.0))?;
        ensure!(!err.contains("panicked") && !err.contains("internal fault"), "{:?} panicked: {err}", self.0);
        Ok(Said { code, out, err })
    }

    /// Runs it; it must succeed and have no complaint.
    pub fn succeed(self) -> Result<Said> {
        let shown = format!("{:?}", self.0);
        let said = self.end()?;
        ensure!(said.code == 0 && said.err.is_empty(), "{shown}: exit code {}: {}", said.code, said.err);
        Ok(said)
    }

    /// Runs it; it must end with this code and one error that contains every word.
    pub fn refuse(self, code: i32, words: &[&str]) -> Result<()> {
        let shown = format!("{:?}", self.0);
        let said = self.end()?;
        ensure!(said.code == code, "{shown}: wanted exit code {code}, got {}: {}{}", said.code, said.out, said.err);
        ensure!(said.err.starts_with("ple: "), "{shown}: wanted an error of ple, got {}", said.err);
        match words.iter().find(|word| !said.err.contains(**word)) {
            Some(word) => anyhow::bail!("{shown}: wanted {word:?} in {}", said.err),
            None => Ok(()),
        }
    }
}

/// A call that is running.
#[cfg(target_os = "linux")]
#[derive(Debug)]
pub struct Begun {
    call: Ple,
    child: std::process::Child,
}

#[cfg(target_os = "linux")]
impl Begun {
    /// Waits for what the program does; that it ends before, or takes more than two minutes, is a failure.
    pub fn wait_until(mut self, holds: impl Fn() -> bool) -> Result<Begun> {
        let start = std::time::Instant::now();
        while !holds() {
            if self.child.try_wait()?.is_some() || start.elapsed().as_secs() > 120 {
                let _ = self.child.kill();
                let said = self.child.wait_with_output()?;
                anyhow::bail!("{:?} did not come to it: {}", self.call.0, String::from_utf8_lossy(&said.stderr));
            }
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        Ok(self)
    }

    /// Ends it at once, as a power cut would; false if it had ended by itself.
    pub fn kill(mut self) -> Result<bool> {
        let ended = self.child.try_wait()?.is_some();
        self.child.kill()?;
        let said = self.child.wait_with_output()?;
        let error = String::from_utf8_lossy(&said.stderr);
        ensure!(!ended || said.status.success(), "{:?}: {}: {error}", self.call.0, said.status);
        ensure!(error.is_empty(), "{:?}: {error}", self.call.0);
        Ok(!ended)
    }

    /// Waits until `due`, or until it has ended.
    pub fn until(mut self, mut due: impl FnMut() -> bool) -> Result<Begun> {
        let start = std::time::Instant::now();
        while !due() && self.child.try_wait()?.is_none() && start.elapsed().as_secs() < 120 {
            std::thread::sleep(std::time::Duration::from_micros(200));
        }
        Ok(self)
    }

    /// Sends a signal by its name and waits for the end.
    pub fn signal(self, name: &str) -> Result<Said> {
        let sent = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status()?;
        ensure!(sent.success(), "{:?} had ended before the signal", self.call.0);
        self.call.said(self.child.wait_with_output()?)
    }
}
