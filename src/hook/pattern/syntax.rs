//! The syntax of hook files' regular expressions: RE2, as Go's `regexp/syntax`
//! documents and other engines compile it.
//!
//! The library that matches has a syntax of its own that differs in corners:
//! there `\<` is a boundary of a word and `\s` takes a vertical tab. So a
//! pattern is read here, by Go's rules, and written down again in the little
//! that both mean alike: literals by number, classes by ranges, groups without
//! names. Pure; what has no such spelling is refused, never taken for something
//! else.

use std::str::Chars;

/// The greatest count of a repetition, and the greatest product of nested ones.
const REPEAT_MAX: u32 = 1000;

/// Ranges of code points, both ends included.
type Ranges = Vec<(u32, u32)>;

const DIGITS: &[(u32, u32)] = &[(0x30, 0x39)];
const SPACES: &[(u32, u32)] = &[(0x09, 0x0a), (0x0c, 0x0d), (0x20, 0x20)];
const WORDS: &[(u32, u32)] = &[(0x30, 0x39), (0x41, 0x5a), (0x5f, 0x5f), (0x61, 0x7a)];

/// The classes of POSIX, by name.
const POSIX: [(&str, &[(u32, u32)]); 14] = [
    ("alnum", &[(0x30, 0x39), (0x41, 0x5a), (0x61, 0x7a)]),
    ("alpha", &[(0x41, 0x5a), (0x61, 0x7a)]),
    ("ascii", &[(0x00, 0x7f)]),
    ("blank", &[(0x09, 0x09), (0x20, 0x20)]),
    ("cntrl", &[(0x00, 0x1f), (0x7f, 0x7f)]),
    ("digit", DIGITS),
    ("graph", &[(0x21, 0x7e)]),
    ("lower", &[(0x61, 0x7a)]),
    ("print", &[(0x20, 0x7e)]),
    ("punct", &[(0x21, 0x2f), (0x3a, 0x40), (0x5b, 0x60), (0x7b, 0x7e)]),
    ("space", &[(0x09, 0x0d), (0x20, 0x20)]),
    ("upper", &[(0x41, 0x5a)]),
    ("word", WORDS),
    ("xdigit", &[(0x30, 0x39), (0x41, 0x46), (0x61, 0x66)]),
];

/// Writes `pattern` in the syntax of the library that matches.
///
/// # Errors
/// What is wrong with it, as a part of a sentence.
pub(super) fn translate(pattern: &str) -> Result<String, String> {
    let mut reader = Reader::new(pattern);
    while let Some(next) = reader.input.next() {
        reader.item(next)?;
    }
    if reader.groups.len() > 1 {
        return Err("a ( is never closed".to_owned());
    }
    if reader.folds && !pattern.is_ascii() {
        return Err("(?i) with letters beyond ASCII is not supported here; \
            write both cases, as in [éÉ]"
            .to_owned());
    }
    Ok(reader.out)
}

/// What the last item was, for a repetition that may follow.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Last {
    /// Nothing: the pattern or a group or an alternative begins.
    Nothing,
    /// Something that can be repeated; within it, repetitions multiply to this.
    Item(u32),
    /// A repetition, which cannot be repeated.
    Repetition,
}

struct Reader<'p> {
    input: Chars<'p>,
    out: String,
    /// One per open group and one for the whole: the greatest product of
    /// repetitions in it.
    groups: Vec<u32>,
    last: Last,
    folds: bool,
}

impl<'p> Reader<'p> {
    fn new(pattern: &'p str) -> Self {
        Self {
            input: pattern.chars(),
            out: String::with_capacity(pattern.len() * 2),
            groups: vec![1],
            last: Last::Nothing,
            folds: false,
        }
    }

    fn item(&mut self, next: char) -> Result<(), String> {
        match next {
            '(' => self.open()?,
            ')' => self.close()?,
            '|' => {
                self.out.push('|');
                self.last = Last::Nothing;
            }
            '*' | '+' | '?' => self.repeat(next, 1, &next.to_string())?,
            '{' => match counted(self.input.as_str()) {
                Some((length, counts)) => self.repeat_counted(length, counts)?,
                None => self.literal('{'),
            },
            '[' => {
                let class = self.class()?;
                self.write(&class);
            }
            '^' | '$' | '.' => self.write(&next.to_string()),
            '\\' => self.escape()?,
            other => self.literal(other),
        }
        Ok(())
    }

    fn write(&mut self, text: &str) {
        self.out.push_str(text);
        self.last = Last::Item(1);
    }

    fn literal(&mut self, literal: char) {
        let written = spell(u32::from(literal));
        self.write(&written);
    }

    fn eat(&mut self, prefix: &str) -> bool {
        let rest = self.input.as_str().strip_prefix(prefix);
        if let Some(rest) = rest {
            self.input = rest.chars();
        }
        rest.is_some()
    }

    /// After `(`. Captures are of no use here: a group is a group.
    fn open(&mut self) -> Result<(), String> {
        if !self.eat("?") {
            self.begin_group("(?:");
            return Ok(());
        }
        if self.eat("P<") || self.eat("<") {
            let rest = self.input.as_str();
            let name = rest.split_once('>').map(|(name, _)| name);
            let is_word =
                |name: &&str| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
            let name =
                name.filter(is_word).ok_or("a group's name is letters, digits and _ within < and >")?;
            self.eat(name);
            self.eat(">");
            self.begin_group("(?:");
            return Ok(());
        }
        self.flags()
    }

    fn begin_group(&mut self, opening: &str) {
        self.out.push_str(opening);
        self.groups.push(1);
        self.last = Last::Nothing;
    }

    /// After `(?`: flags for the rest of the group, or of a group of their own.
    fn flags(&mut self) -> Result<(), String> {
        let unknown = || "after (? there are the flags i, m, s and U, or :, or a name".to_owned();
        let mut flags: [(char, Option<bool>); 3] = [('i', None), ('m', None), ('s', None)];
        let (mut on, mut seen) = (true, true);
        loop {
            let next = self.input.next().ok_or_else(unknown)?;
            match next {
                // Greed makes no difference to whether there is a match.
                'U' => seen = true,
                '-' if on => (on, seen) = (false, false),
                ':' | ')' if seen => {
                    self.set_flags(flags, next == ':');
                    return Ok(());
                }
                flag => {
                    let known = flags.iter_mut().find(|(name, _)| *name == flag).ok_or_else(unknown)?;
                    known.1 = Some(on);
                    seen = true;
                }
            }
        }
    }

    fn set_flags(&mut self, flags: [(char, Option<bool>); 3], is_group: bool) {
        let of = |wanted: bool| -> String {
            flags.iter().filter(|(_, set)| *set == Some(wanted)).map(|(name, _)| *name).collect()
        };
        let (on, off) = (of(true), of(false));
        self.folds |= on.contains('i');
        let minus = if off.is_empty() { "" } else { "-" };
        if is_group {
            self.begin_group(&format!("(?{on}{minus}{off}:"));
        } else if !(on.is_empty() && off.is_empty()) {
            self.out.push_str(&format!("(?{on}{minus}{off})"));
            self.last = Last::Nothing;
        }
    }

    fn close(&mut self) -> Result<(), String> {
        if self.groups.len() < 2 {
            return Err("a ) closes nothing".to_owned());
        }
        self.out.push(')');
        let product = self.groups.pop().unwrap_or(1);
        self.note(product);
        self.last = Last::Item(product);
        Ok(())
    }

    /// Notes a product of repetitions in the innermost group.
    fn note(&mut self, product: u32) {
        if let Some(greatest) = self.groups.last_mut() {
            *greatest = product.max(*greatest);
        }
    }

    fn repeat(&mut self, operator: impl std::fmt::Display, times: u32, shown: &str) -> Result<(), String> {
        let within = match self.last {
            Last::Item(within) => within,
            Last::Nothing => return Err(format!("there is nothing that {shown} could repeat")),
            Last::Repetition => return Err(format!("{shown} follows a repetition; use a group")),
        };
        let product = within.saturating_mul(times.max(1));
        if times > REPEAT_MAX || (times > 1 && product > REPEAT_MAX) {
            return Err(format!("{shown}: repetitions count to {REPEAT_MAX} in all"));
        }
        self.note(product);
        self.out.push_str(&operator.to_string());
        if self.eat("?") {
            self.out.push('?');
        }
        self.last = Last::Repetition;
        Ok(())
    }

    fn repeat_counted(&mut self, length: usize, counts: Counts) -> Result<(), String> {
        let (text, rest) = self.input.as_str().split_at_checked(length).unwrap_or_default();
        self.input = rest.chars();
        let shown = format!("{{{text}");
        let Counts { least, most } = counts;
        if least > REPEAT_MAX || most.is_some_and(|most| most > REPEAT_MAX || most < least) {
            return Err(format!("{shown}: not from the smaller to the greater, or beyond {REPEAT_MAX}"));
        }
        self.repeat(&shown, most.unwrap_or(least), &shown)
    }

    /// After `\`, outside of a class.
    fn escape(&mut self) -> Result<(), String> {
        if let Some(ranges) = self.perl_class() {
            let class = write_class(&ranges, false);
            self.write(&class);
            return Ok(());
        }
        let boundary = ["A", "b", "B", "z"].into_iter().find(|letter| self.eat(letter));
        if let Some(letter) = boundary {
            self.write(&format!("\\{letter}"));
        } else if self.eat("Q") {
            let rest = self.input.as_str();
            let (quoted, rest) = rest.split_once("\\E").unwrap_or((rest, ""));
            self.input = rest.chars();
            quoted.chars().for_each(|literal| self.literal(literal));
        } else {
            let literal = self.escaped_char()?;
            self.literal(literal);
        }
        Ok(())
    }

    /// After `\`: one of the classes that are written as a letter, if it is one.
    fn perl_class(&mut self) -> Option<Ranges> {
        let classes = [("d", DIGITS), ("s", SPACES), ("w", WORDS)];
        let found = classes.into_iter().find(|(letter, _)| self.eat(letter));
        if let Some((_, ranges)) = found {
            return Some(ranges.to_vec());
        }
        let classes = [("D", DIGITS), ("S", SPACES), ("W", WORDS)];
        classes.into_iter().find(|(letter, _)| self.eat(letter)).map(|(_, ranges)| complement(ranges))
    }

    /// After `\`: the character that is meant.
    fn escaped_char(&mut self) -> Result<char, String> {
        let next = self.input.next().ok_or("it ends with a \\")?;
        let code = match next {
            'a' => 0x07,
            'f' => 0x0c,
            'n' => 0x0a,
            'r' => 0x0d,
            't' => 0x09,
            'v' => 0x0b,
            'x' => self.hexadecimal()?,
            '0'..='7' => self.octal(next)?,
            'p' | 'P' => {
                return Err(format!(
                    "\\{next}: classes of Unicode are not supported here; \
                    list the characters in [ and ]"
                ));
            }
            other if other.is_ascii() && !other.is_ascii_alphanumeric() => u32::from(other),
            other => return Err(format!("\\{other} means nothing")),
        };
        char::from_u32(code).ok_or_else(|| format!("there is no character {code:x}"))
    }

    /// After `\x`: two digits, or any number of them within { and }.
    fn hexadecimal(&mut self) -> Result<u32, String> {
        let wrong = "\\x has two hexadecimal digits, or some within { and }";
        let rest = self.input.as_str();
        let (digits, length) = match rest.strip_prefix('{') {
            Some(inner) => {
                let digits = inner.split_once('}').map(|(digits, _)| digits).ok_or(wrong)?;
                (digits, digits.len() + 2)
            }
            None => (rest.get(..2).ok_or(wrong)?, 2),
        };
        if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(wrong.to_owned());
        }
        self.input = rest.get(length..).unwrap_or_default().chars();
        u32::from_str_radix(digits, 16).map_err(|_| format!("there is no character {digits}"))
    }

    /// After `\` and an octal digit: up to two more. One that is not zero, alone,
    /// would be a reference back.
    fn octal(&mut self, first: char) -> Result<u32, String> {
        let mut code = first.to_digit(8).unwrap_or_default();
        let mut length = 1;
        while length < 3
            && let Some(digit) = self.input.clone().next().and_then(|next| next.to_digit(8))
        {
            self.input.next();
            code = code * 8 + digit;
            length += 1;
        }
        if length == 1 && first != '0' {
            return Err(format!("\\{first}: references to groups are not supported"));
        }
        Ok(code)
    }

    /// After `[`: the class, up to its end, as the library writes it.
    fn class(&mut self) -> Result<String, String> {
        let is_negated = self.eat("^");
        let mut ranges = Ranges::new();
        let mut is_first = true;
        loop {
            if !is_first && self.eat("]") {
                return Ok(write_class(&ranges, is_negated));
            }
            is_first = false;
            if let Some(posix) = self.posix_class()? {
                ranges.extend(posix);
                continue;
            }
            if self.input.as_str().starts_with('\\') {
                let before = self.input.clone();
                self.eat("\\");
                if let Some(perl) = self.perl_class() {
                    ranges.extend(perl);
                    continue;
                }
                self.input = before;
            }
            ranges.push(self.class_range()?);
        }
    }

    fn class_range(&mut self) -> Result<(u32, u32), String> {
        let low = self.class_char()?;
        let rest = self.input.as_str();
        // [a-] has an a and a -.
        if rest.starts_with('-') && rest.len() > 1 && !rest.starts_with("-]") {
            self.eat("-");
            let high = self.class_char()?;
            if high < low {
                return Err(format!("the range {low}-{high} goes backwards"));
            }
            return Ok((u32::from(low), u32::from(high)));
        }
        Ok((u32::from(low), u32::from(low)))
    }

    fn class_char(&mut self) -> Result<char, String> {
        match self.input.next() {
            Some('\\') => self.escaped_char(),
            Some(other) => Ok(other),
            None => Err("a [ is never closed".to_owned()),
        }
    }

    /// In a class: `[:name:]` or `[:^name:]`, if it is one.
    fn posix_class(&mut self) -> Result<Option<Ranges>, String> {
        let named = self.input.as_str().strip_prefix("[:").and_then(|rest| rest.split_once(":]"));
        let Some((name, rest)) = named else { return Ok(None) };
        let plain = name.strip_prefix('^').unwrap_or(name);
        let (_, ranges) = POSIX
            .into_iter()
            .find(|(known, _)| *known == plain)
            .ok_or_else(|| format!("there is no class [:{name}:]"))?;
        self.input = rest.chars();
        Ok(Some(if plain == name { ranges.to_vec() } else { complement(ranges) }))
    }
}

/// The counts of a repetition in braces.
#[derive(Clone, Copy)]
struct Counts {
    least: u32,
    /// None = any number.
    most: Option<u32>,
}

/// After `{`: the length of the rest of a repetition and its counts, if it is one.
/// Anything else is a brace.
fn counted(rest: &str) -> Option<(usize, Counts)> {
    let (inner, _) = rest.split_once('}')?;
    let counts = match inner.split_once(',') {
        None => {
            let count = count(inner)?;
            Counts { least: count, most: Some(count) }
        }
        Some((least, "")) => Counts { least: count(least)?, most: None },
        Some((least, most)) => Counts { least: count(least)?, most: Some(count(most)?) },
    };
    Some((inner.len() + 1, counts))
}

/// A decimal number without leading zeros; too large ones are all alike.
fn count(digits: &str) -> Option<u32> {
    let is_number = !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit());
    let has_zeros = digits.len() > 1 && digits.starts_with('0');
    (is_number && !has_zeros).then(|| digits.parse().unwrap_or(u32::MAX))
}

fn complement(ranges: &[(u32, u32)]) -> Ranges {
    let mut sorted = ranges.to_vec();
    sorted.sort_unstable();
    let mut rest = Ranges::new();
    let mut next = 0;
    for (low, high) in sorted {
        if low > next {
            rest.push((next, low - 1));
        }
        next = next.max(high + 1);
    }
    rest.push((next, u32::from(char::MAX)));
    rest
}

/// A character that stands for itself in every context.
fn spell(code: u32) -> String {
    match char::from_u32(code) {
        Some(plain) if plain.is_ascii_alphanumeric() || !plain.is_ascii() => plain.to_string(),
        _ => format!("\\x{{{code:x}}}"),
    }
}

fn write_class(ranges: &[(u32, u32)], is_negated: bool) -> String {
    let mut class = String::from(if is_negated { "[^" } else { "[" });
    for (low, high) in ranges {
        // Nothing but characters: what lies between these two is none.
        for (low, high) in [(*low, (*high).min(0xd7ff)), ((*low).max(0xe000), *high)] {
            if low <= high {
                class.push_str(&format!("{}-{}", spell(low), spell(high)));
            }
        }
    }
    class.push(']');
    class
}
