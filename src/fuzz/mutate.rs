//! Inputs by mutation of examples: the same for the same seed.

/// Makes inputs.
pub struct Mutator {
    random: fastrand::Rng,
    examples: &'static [&'static [u8]],
    words: Vec<&'static [u8]>,
}

/// What is put in whole: what parsers stumble over.
const WORDS: [&[u8]; 16] = [
    b"\0",
    b"\xff\xff",
    b"%",
    b"%zz",
    b"-1",
    b"9223372036854775808",
    b"18446744073709551616",
    b"1e999",
    b"\"",
    b"\\u0000",
    b"{{{{{{{{",
    b"[[[[[[[[",
    b"\n\n",
    b": ",
    "\u{1F600}".as_bytes(),
    b"0000000000000000000000000000000000000000",
];

/// No input is longer.
const LONGEST: usize = 4_096;

impl Mutator {
    /// From these examples.
    pub fn new(seed: u64, examples: &'static [&'static [u8]]) -> Self {
        // The words of the examples themselves, put elsewhere, reach further than bytes do.
        let words = examples.iter().flat_map(|example| example.split(|byte| b" \n:,.\"=/".contains(byte)));
        let words = words.filter(|word| word.len() > 1).chain(WORDS).collect();
        Self { random: fastrand::Rng::with_seed(seed), examples, words }
    }

    /// The next input.
    pub fn next(&mut self) -> Vec<u8> {
        let random = &mut self.random;
        let mut input = random.choice(self.examples).map_or_else(Vec::new, |example| example.to_vec());
        for _ in 0..random.u32(1..8) {
            let at = random.usize(..=input.len());
            let to = random.usize(at..=input.len()).min(at + 32);
            match random.u32(..7) {
                0 if at < input.len() => input[at] ^= 1 << random.u32(..8),
                1 => input.insert(at, random.u8(..)),
                2 => drop(input.drain(at..to)),
                3 => {
                    let part = input[at..to].to_vec();
                    let into = random.usize(..=input.len());
                    input.splice(into..into, part);
                }
                4 => {
                    let other = random.choice(self.examples).copied().unwrap_or_default();
                    let from = random.usize(..=other.len());
                    input.truncate(at);
                    input.extend_from_slice(&other[from..]);
                }
                _ => {
                    let word = random.choice(&self.words).copied().unwrap_or_default();
                    input.splice(at..if random.bool() { at } else { to }, word.iter().copied());
                }
            }
        }
        input.truncate(LONGEST);
        input
    }
}
