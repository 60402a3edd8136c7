//! The language of the demo: short remarks on films, food and journeys. A remark is an opening, which serves as the prompt,
//! and what is said of it, which is drawn in one of three moods. Words of feeling carry the weights of the lexicon reward.

use kernels::sample::philox;

/// The principle of the demo: texts of the base that begin with it go on in a good mood.
pub const PRINCIPLE: &str = "Find something kind to say.";

/// How a remark feels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// It praises.
    Good,
    /// It states.
    Plain,
    /// It complains.
    Bad,
}

/// Adjectives with their weights, and closing sentences.
struct Words {
    adjectives: &'static [(&'static str, f64)],
    closings: &'static [&'static str],
}

const GOOD: Words = Words {
    adjectives: &[
        ("wonderful", 2.0),
        ("lovely", 1.5),
        ("delightful", 2.0),
        ("charming", 1.5),
        ("great", 1.5),
        ("beautiful", 2.0),
        ("superb", 2.0),
        ("pleasant", 1.0),
        ("good", 1.0),
        ("nice", 1.0),
        ("splendid", 2.0),
        ("cheerful", 1.5),
        ("excellent", 2.0),
        ("sweet", 1.0),
        ("memorable", 1.0),
        ("gorgeous", 2.0),
    ],
    closings: &[
        "{we} loved every minute.",
        "{we} enjoyed it with {friends}.",
        "{we} would gladly come back {time}.",
        "It was a joy from start to end.",
        "{all} smiled all evening.",
        "A treat for {friends}.",
    ],
};

const PLAIN: Words = Words {
    adjectives: &[
        ("ordinary", 0.0),
        ("long", 0.0),
        ("short", 0.0),
        ("simple", 0.0),
        ("usual", 0.0),
        ("quiet", 0.0),
        ("familiar", 0.0),
        ("local", 0.0),
        ("modern", 0.0),
        ("small", 0.0),
        ("dark", 0.0),
        ("plain", 0.0),
    ],
    closings: &[
        "{we} stayed for an hour.",
        "{we} went there with {friends}.",
        "{we} talked about it {time}.",
        "It took the whole evening.",
        "{all} came along {time}.",
        "It was over by {time}.",
    ],
};

const BAD: Words = Words {
    adjectives: &[
        ("awful", -2.0),
        ("dull", -1.5),
        ("terrible", -2.0),
        ("boring", -1.5),
        ("poor", -1.5),
        ("bad", -1.0),
        ("weak", -1.0),
        ("tiresome", -1.0),
        ("horrible", -2.0),
        ("clumsy", -1.0),
        ("dreary", -1.5),
        ("dreadful", -2.0),
        ("ugly", -1.5),
        ("sad", -1.0),
    ],
    closings: &[
        "{we} hated it with {friends}.",
        "{we} regret every minute.",
        "{we} would never come back {time}.",
        "It was a waste from start to end.",
        "{all} yawned all evening.",
        "A disappointment for {friends}.",
    ],
};

/// Words of closings that the lexicon weighs.
const WEIGHED: &[(&str, f64)] = &[
    ("loved", 1.5),
    ("enjoyed", 1.5),
    ("gladly", 1.0),
    ("joy", 1.5),
    ("smiled", 1.0),
    ("treat", 1.5),
    ("hated", -1.5),
    ("regret", -1.5),
    ("never", -0.5),
    ("waste", -1.5),
    ("yawned", -1.0),
    ("disappointment", -1.5),
];

/// What remarks are about: openings, and the parts of the matter that are spoken of.
struct Topic {
    openings: &'static [&'static str],
    parts: &'static [&'static str],
}

const TOPICS: [Topic; 3] = [
    Topic {
        openings: &[
            "The {film} about {whom}",
            "This {film} set in {place}",
            "The new {film} with {whom}",
            "Our {day} {film} about {whom}",
            "That old {film} from {place}",
        ],
        parts: &["the acting", "the music", "the ending", "the story", "the first hour", "the cast"],
    },
    Topic {
        openings: &[
            "The {food} at the {room} in {place}",
            "My {food} from the {room}",
            "The {day} {food} at the {room}",
            "This {food} from {place}",
            "Our {food} at the {room} with {whom}",
        ],
        parts: &["the sauce", "the waiter", "the bread", "the coffee", "the dessert", "the service"],
    },
    Topic {
        openings: &[
            "The {trip} to {place}",
            "Our {day} {trip} to {place}",
            "My {trip} with {whom} to {place}",
            "The {trip} from {place} to {place}",
            "That {day} {trip} with {whom}",
        ],
        parts: &["the hotel", "the weather", "the view", "the guide", "the last day", "the crowd"],
    },
];

const BODIES: &[&str] = &[
    " was {very} {adj}, and {part} was {adj}. {closing}",
    " was {adj} and {adj}. {closing}",
    " was {very} {adj}. {closing}",
    " was {adj}, but {part} was {adj}.",
    " had its {adj} moments, and {part} was {very} {adj}. {closing}",
    " was {adj}. {closing} I thought {part} was {adj}.",
    " seemed {adj}, and I found {part} {very} {adj}.",
];

/// Slots that do not depend on topic or mood.
const SLOTS: &[(&str, &[&str])] = &[
    ("film", &["film", "comedy", "drama", "thriller", "musical", "western", "cartoon", "documentary"]),
    (
        "whom",
        &[
            "a sailor",
            "two sisters",
            "the baker",
            "my uncle",
            "a young doctor",
            "the neighbours",
            "an old friend",
            "three students",
            "the painter",
            "my cousins",
            "a tired teacher",
            "the mayor",
        ],
    ),
    (
        "place",
        &[
            "Lisbon", "Oslo", "Cairo", "Lima", "Kyoto", "Dublin", "Naples", "Quebec", "Vienna", "Hanoi", "Bergen", "Tunis",
            "Porto", "Seville",
        ],
    ),
    ("food", &["soup", "curry", "bread", "salad", "stew", "pasta", "cake", "breakfast", "lunch", "supper", "pie"]),
    ("room", &["bakery", "market", "canteen", "harbour inn", "corner shop", "station bar", "garden house", "old mill"]),
    ("trip", &["walk", "train ride", "weekend", "boat trip", "holiday", "bus tour", "hike", "flight", "journey"]),
    ("day", &["Monday", "Friday", "Sunday", "summer", "winter", "birthday", "spring", "autumn"]),
    ("we", &["We", "I", "They", "All of us"]),
    ("all", &["Everyone", "The children", "Our guests", "My parents", "The others"]),
    ("friends", &["the children", "our guests", "my parents", "the others", "some friends"]),
    ("time", &["next year", "that night", "after dinner", "in the morning", "on the way home"]),
    ("very", &["very", "rather", "really", "quite", "truly"]),
];

/// Moods of a remark: most of its words agree with it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tone {
    /// Shares of remarks that praise and that complain; the rest states.
    pub good: f64,
    /// See `good`.
    pub bad: f64,
    /// Share of a remark's words that take its mood whatever the others do; the rest is drawn anew.
    pub firm: f64,
}

/// A stream of random numbers: Philox under the seed, counted by `row` and `stream`.
pub struct Draw {
    key: [u32; 2],
    row: u32,
    stream: u32,
    next: u32,
}

/// Keeps these numbers apart from those of sampling, shuffling and initialisation.
const KEY: u32 = 0x6465_6d6f;

impl Draw {
    /// The numbers of one row of one file.
    pub fn new(seed: u64, stream: u32, row: u32) -> Draw {
        Draw { key: [seed as u32, (seed >> 32) as u32 ^ KEY], row, stream, next: 0 }
    }

    /// Uniform in [0, 1), 32 bits.
    fn uniform(&mut self) -> f64 {
        let [word, ..] = philox(self.key, [self.row, self.stream, self.next, 0]);
        self.next += 1;
        f64::from(word) / 4_294_967_296.0
    }

    fn index(&mut self, n: usize) -> usize {
        (self.uniform() * n as f64) as usize
    }

    fn mood(&mut self, tone: Tone) -> Mood {
        match self.uniform() {
            u if u < tone.good => Mood::Good,
            u if u < tone.good + tone.bad => Mood::Bad,
            _ => Mood::Plain,
        }
    }
}

fn words(mood: Mood) -> &'static Words {
    match mood {
        Mood::Good => &GOOD,
        Mood::Plain => &PLAIN,
        Mood::Bad => &BAD,
    }
}

/// A remark: its opening and what follows, which begins with a space.
pub fn remark(draw: &mut Draw, tone: Tone) -> (String, String) {
    let topic = &TOPICS[draw.index(TOPICS.len())];
    let opening = topic.openings[draw.index(topic.openings.len())];
    let body = BODIES[draw.index(BODIES.len())];
    let mood = draw.mood(tone);
    let opening = expand(opening, draw, &mut |_, _| None);
    let body = expand(body, draw, &mut |slot, draw| {
        let mut felt = || if draw.uniform() < tone.firm { mood } else { draw.mood(tone) };
        match slot {
            "part" => Some(topic.parts[draw.index(topic.parts.len())]),
            "adj" => {
                let of = words(felt()).adjectives;
                Some(of[draw.index(of.len())].0)
            }
            "closing" => {
                let of = words(felt()).closings;
                Some(of[draw.index(of.len())])
            }
            _ => None,
        }
    });
    (opening, body)
}

/// Puts words into the slots of a template; a slot's own text may have slots.
fn expand(template: &str, draw: &mut Draw, special: &mut dyn FnMut(&str, &mut Draw) -> Option<&'static str>) -> String {
    let mut out = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('{') {
        let (slot, after) = after.split_once('}').unwrap_or((after, ""));
        out.push_str(before);
        let general = |draw: &mut Draw| {
            let list = SLOTS.iter().find(|(name, _)| *name == slot).map_or(&[][..], |(_, list)| list);
            list.get(draw.index(list.len())).copied().unwrap_or_default()
        };
        let text = special(slot, draw).unwrap_or_else(|| general(draw));
        out.push_str(&expand(text, draw, &mut |_, _| None));
        rest = after;
    }
    out + rest
}

/// Every text the grammar is made of, slots included.
pub fn texts() -> impl Iterator<Item = &'static str> {
    let moods = [&GOOD, &PLAIN, &BAD];
    let adjectives = moods.into_iter().flat_map(|m| m.adjectives.iter().map(|(word, _)| *word));
    let closings = moods.into_iter().flat_map(|m| m.closings.iter().copied());
    let topics = TOPICS.iter().flat_map(|t| t.openings.iter().chain(t.parts).copied());
    let slots = SLOTS.iter().flat_map(|(_, list)| list.iter().copied());
    adjectives.chain(closings).chain(topics).chain(slots).chain(BODIES.iter().copied()).chain([PRINCIPLE])
}

/// The lexicon: words of feeling and their weights.
pub fn lexicon() -> impl Iterator<Item = (&'static str, f64)> {
    let adjectives = [&GOOD, &BAD].into_iter().flat_map(|m| m.adjectives);
    adjectives.chain(WEIGHED).copied()
}
