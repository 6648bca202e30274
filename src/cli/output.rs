//! Tables for people, JSON and YAML for machines, progress on a terminal.

use std::{
    fmt::Display,
    io::{self, BufWriter, IsTerminal as _, Write},
    time::Duration,
};

use clap::{
    ValueEnum,
    builder::styling::{AnsiColor, Style},
};
use comfy_table::{Cell, Color, ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};

use super::Failure;
use crate::{cluster::clock, ops};

/// How results are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    #[default]
    Table,
    /// For people, with more columns
    Wide,
    /// JSON
    Json,
    /// YAML
    Yaml,
    /// Names only, one a line
    Name,
}

/// Meaning of a word, shown as a colour on a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// As it should be; added.
    Good,
    /// Look at it; changed.
    Notice,
    /// Wrong; removed.
    Bad,
    /// Less important.
    Quiet,
    /// No colour.
    Plain,
}

/// Standard output, and standard error for everything that is not the result.
pub struct Out {
    stdout: BufWriter<io::Stdout>,
    coloured: bool,
    progress: bool,
}

impl Out {
    pub fn new(no_color: bool) -> Self {
        Self {
            stdout: BufWriter::new(io::stdout()),
            coloured: !no_color && io::stdout().is_terminal(),
            progress: io::stderr().is_terminal(),
        }
    }

    /// Writes what is buffered.
    pub fn finish(&mut self) -> Result<(), Failure> {
        Ok(self.stdout.flush()?)
    }

    /// One line of the result.
    pub fn line(&mut self, text: impl Display) -> Result<(), Failure> {
        Ok(writeln!(self.stdout, "{text}")?)
    }

    /// Part of the result as it is.
    pub fn raw(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        Ok(self.stdout.write_all(bytes)?)
    }

    /// A remark on standard error: not part of the result.
    pub fn note(&mut self, text: impl Display) -> Result<(), Failure> {
        self.finish()?;
        let _ = writeln!(io::stderr(), "{text}");
        Ok(())
    }

    /// `text` in its tone where colours are wanted.
    pub fn tone(&self, tone: Tone, text: impl Display) -> String {
        let color = match tone {
            _ if !self.coloured => return text.to_string(),
            Tone::Plain => return text.to_string(),
            Tone::Good => AnsiColor::Green,
            Tone::Notice => AnsiColor::Yellow,
            Tone::Bad => AnsiColor::Red,
            Tone::Quiet => AnsiColor::BrightBlack,
        };
        let style = Style::new().fg_color(Some(color.into()));
        format!("{style}{text}{style:#}")
    }

    /// A table without borders, as kubectl writes them; never cut or wrapped.
    pub fn table<R>(&mut self, header: &[&str], rows: R) -> Result<(), Failure>
    where
        R: IntoIterator<Item = Vec<(String, Tone)>>,
    {
        let mut table = Table::new();
        table
            .load_style(presets::NOTHING)
            .set_content_arrangement(ContentArrangement::Disabled);
        if self.coloured {
            table.enforce_styling();
        } else {
            table.force_no_tty();
        }
        if !header.is_empty() {
            table.set_header(header.to_vec());
        }
        for row in rows {
            table.add_row(row.into_iter().map(|(text, tone)| {
                let cell = Cell::new(one_line(&text));
                match tone {
                    Tone::Plain => cell,
                    Tone::Good => cell.fg(Color::Green),
                    Tone::Notice => cell.fg(Color::Yellow),
                    Tone::Bad => cell.fg(Color::Red),
                    Tone::Quiet => cell.fg(Color::DarkGrey),
                }
            }));
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 3));
        }
        let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
        for line in lines {
            self.line(line)?;
        }
        Ok(())
    }

    /// A value as JSON or YAML.
    pub fn structured(&mut self, format: Format, value: &impl Serialize) -> Result<(), Failure> {
        if format == Format::Yaml {
            let text = ops::yaml::to_string(value)?;
            return self.raw(text.as_bytes());
        }
        let text = serde_json::to_string_pretty(value).map_err(|e| unwritable(&e))?;
        self.line(text)
    }

    /// One object or several as the API server writes them, without `managedFields`.
    pub fn objects(&mut self, format: Format, objects: &[impl Serialize], as_list: bool) -> Result<(), Failure> {
        let mut items = Vec::with_capacity(objects.len());
        for object in objects {
            items.push(plain_object(object)?);
        }
        match items.pop() {
            Some(item) if !as_list && items.is_empty() => self.structured(format, &item),
            last => {
                items.extend(last);
                self.structured(format, &json!({"apiVersion": "v1", "kind": "List", "items": items}))
            }
        }
    }

    /// A line that moves while something is waited for; shown only on a terminal.
    pub fn spinner(&self, message: impl Into<String>) -> ProgressBar {
        let bar = ProgressBar::with_draw_target(None, self.target());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
            bar.set_style(style);
        }
        bar.set_message(message.into());
        if self.progress {
            bar.enable_steady_tick(Duration::from_millis(120));
        }
        bar
    }

    /// A bar of known length; shown only on a terminal.
    pub fn bar(&self, message: impl Into<String>) -> ProgressBar {
        let bar = ProgressBar::with_draw_target(Some(0), self.target());
        if let Ok(style) = ProgressStyle::with_template("{msg} [{bar:30}] {pos}/{len} ({elapsed})") {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(message.into());
        bar
    }

    fn target(&self) -> ProgressDrawTarget {
        if self.progress {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        }
    }
}

fn unwritable(error: &dyn Display) -> Failure {
    Failure::Ops(ops::Error::internal(format!("the result cannot be written: {error}")))
}

/// An object as the API server writes it, without `managedFields`.
pub fn plain_object(object: &impl Serialize) -> Result<Value, Failure> {
    let mut value = serde_json::to_value(object).map_err(|e| unwritable(&e))?;
    if let Some(metadata) = value["metadata"].as_object_mut() {
        metadata.remove("managedFields");
    }
    Ok(value)
}

/// Text that stays on its line, never moves the terminal's cursor, and reads in the order in which it is written: what an
/// approver sees is what there is.
pub fn one_line(text: &str) -> String {
    let shown = |c: char| match c {
        _ if c.is_control() => ' ',
        '\u{200e}' | '\u{200f}' | '\u{061c}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '\u{fffd}',
        _ => c,
    };
    text.chars().map(shown).collect()
}

/// How long ago, as kubectl writes ages: `12s`, `5m10s`, `3h`, `2d4h`, `400d`.
pub fn age(since: Option<Timestamp>) -> String {
    since.map_or_else(
        || "<unknown>".to_owned(),
        |since| short(clock::now().as_second() - since.as_second()),
    )
}

/// How long from now, in the same words; `over` when it is past.
pub fn left(until: Timestamp) -> String {
    let seconds = until.as_second() - clock::now().as_second();
    if seconds > 0 { short(seconds) } else { "over".into() }
}

/// A length of time as ages are written.
pub fn short(seconds: i64) -> String {
    let seconds = seconds.max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let two = |big: i64, unit: &str, small: i64, small_unit: &str| {
        if small == 0 {
            format!("{big}{unit}")
        } else {
            format!("{big}{unit}{small}{small_unit}")
        }
    };
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 => two(minutes, "m", seconds % 60, "s"),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => two(hours, "h", minutes % 60, "m"),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => two(days, "d", hours % 24, "h"),
        _ => format!("{days}d"),
    }
}

/// Bytes with a binary unit: `177 KiB`.
pub fn bytes(count: u64) -> String {
    indicatif::BinaryBytes(count).to_string()
}

/// `1 image`, `2 images`; `one` is a word whose plural ends in `s`.
pub fn counted<N: Copy + Display + PartialEq + From<u8>>(count: N, one: &str) -> String {
    format!("{count} {one}{}", if count == N::from(1) { "" } else { "s" })
}

/// `text`, or `<none>` as kubectl writes it.
pub fn or_none(text: Option<impl Into<String>>) -> String {
    text.map_or_else(|| "<none>".to_owned(), Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_read_as_kubectl_writes_them() {
        let ages = [
            (-3, "0s"),
            (59, "59s"),
            (119, "119s"),
            (310, "5m10s"),
            (600, "10m"),
            (3 * 3600, "3h"),
            (52 * 3600, "2d4h"),
            (34_560_000, "400d"),
        ];
        for (seconds, text) in ages {
            assert_eq!(short(seconds), text);
        }
    }

    #[test]
    fn only_one_is_singular() {
        assert_eq!(
            [0_u64, 1, 2].map(|n| counted(n, "image")),
            ["0 images", "1 image", "2 images"]
        );
    }

    #[test]
    fn a_cell_with_control_characters_stays_on_its_row() {
        assert_eq!(one_line("a\nb\u{1b}[31m"), "a b [31m");
        assert_eq!(
            one_line("a\u{202e}b"),
            "a\u{fffd}b",
            "text that runs backwards hides what is approved"
        );
    }
}
