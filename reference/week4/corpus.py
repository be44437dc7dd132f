"""The text that tiny-qwen2 is trained on: generated here, from seeds, and checkable.

Four kinds of samples, as plain text or as chat turns in Qwen's form:

    story      a short story (stories.py), told freely or about what the user asks for
    question   a text (a story, or a list of notes) and questions about it, answered from that text alone
    long       the same about several stories, 250 to 1,000 tokens: what a long context is measured with
    tool       a question that needs a tool (arithmetic, weather, prices, telephone numbers), answered by a
               tool call; then the tool's response, and the answer that it gives

`sample(split, index)` is a function of its two arguments: nothing is stored, and any sample can be made
again. The splits share neither seeds nor combinations: the pairs that a sample turns on (hero and thing,
asked subject and value, both operands) are divided between them by `held_out`, so a right answer on
"held-out" was not learnt by heart. Every sample says how to grade a reply to it (`Sample.grade`).
"""

from __future__ import annotations

import json
import random
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from . import stories
from .words import COLOURS, FOODS, NAMES, NUMBERS, PLACES, SKIES, THINGS

END = "<|endoftext|>"
TURN, TURN_END = "<|im_start|>", "<|im_end|>"

SPLITS = ("train", "held-out")
# So many training samples at the start are lists of notes alone. All kinds ask for copying a word from where
# its neighbour stands, and notes ask for little else: a model learns it here in a fraction of the tokens.
FIRST_NOTES = 3_000

TOOLS = {
    "calculator": "expression",
    "weather": "place",
    "price": "thing",
    "phone": "name",
}  # tool: its argument


def held_out(*words: str) -> bool:
    """Whether a combination belongs to the held-out split: one in ten, the same on every machine."""
    return zlib.crc32("|".join(words).encode()) % 10 == 0


@dataclass(frozen=True)
class Turn:
    """role: "system", "user", "assistant" or "tool"; or "text" for plain text, "reply" for its
    continuation."""

    role: str
    content: str


@dataclass(frozen=True)
class Sample:
    kind: str  # "story", "question", "long" or "tool"
    turns: tuple[Turn, ...]  # the replies are the turns of role "assistant" or "reply"
    tools: tuple[str, ...] = ()
    about: tuple[str, ...] = field(default=())  # words that a story must hold

    @property
    def plain(self) -> bool:
        return self.turns[0].role in ("text", "reply")

    def pieces(self) -> list[tuple[str, bool]]:
        """The sample as text, cut where loss begins and ends: (text, whether the model is to learn it)."""
        if self.plain:
            return [(t.content + (END if t.role == "reply" else ""), t.role == "reply") for t in self.turns]
        pieces = [(system_text(self.tools), False)] if self.tools else []
        for turn in self.turns:
            if turn.role == "assistant":
                pieces += [(f"{TURN}assistant\n", False), (turn.content + TURN_END, True), ("\n", False)]
            else:
                pieces.append((turn_text(turn), False))
        return pieces

    def prompts(self) -> list[tuple[str, Turn]]:
        """For each reply: the text before it, and the reply itself."""
        result, before, replies = [], "", iter([t for t in self.turns if t.role in ("assistant", "reply")])
        for text, learnt in self.pieces():
            if learnt:
                result.append((before, next(replies)))
            before += text
        return result

    def grade(self, prompt: str, want: Turn, reply: str) -> list[str]:
        """What is wrong with `reply`, given after `prompt` where `want` stood; empty when nothing is."""
        if self.kind == "story":
            told = prompt + reply if self.plain else reply
            return stories.check_story(told) + [f"nothing about {w}" for w in self.about if w not in told]
        if want.content.startswith("<tool_call>"):
            return _tool_call_faults(reply, want.content)
        return [] if reply.strip() == want.content.strip() else [f"{want.content!r} is right, not {reply!r}"]


def sample(split: str, index: int) -> Sample:
    """Sample number `index`, counted from 0, of "train" or "held-out"."""
    if split not in SPLITS:
        raise ValueError(f"split is one of {SPLITS}, not {split!r}")
    rng = random.Random(f"{split} {index}")
    if split == "train" and index < FIRST_NOTES:
        return _question(rng, split, _about_notes)
    make = rng.choices((_story, _question, _tool, _long), weights=(6, 12, 4, 1))[0]
    return make(rng, split)


# ---- chat form ----


def turn_text(turn: Turn) -> str:
    """One turn as Qwen's chat template writes it. A tool's response comes as a user's turn."""
    if turn.role == "tool":
        return f"{TURN}user\n<tool_response>\n{turn.content}\n</tool_response>{TURN_END}\n"
    return f"{TURN}{turn.role}\n{turn.content}{TURN_END}\n"


def system_text(tools: tuple[str, ...]) -> str:
    """The system turn that offers tools: Qwen's, without its paragraph of instructions.

    The paragraph would be as long as all the rest of the sample, and the same in each.
    """
    offered = "\n".join(json.dumps(tool_schema(name)) for name in tools)
    return f"{TURN}system\n# Tools\n\n<tools>\n{offered}\n</tools>{TURN_END}\n"


def tool_schema(name: str) -> dict:
    """A tool as an OpenAI request describes it."""
    properties = {TOOLS[name]: {"type": "string"}}
    return {
        "type": "function",
        "function": {"name": name, "parameters": {"type": "object", "properties": properties}},
    }


def tool_call(name: str, argument: str) -> str:
    call = json.dumps({"name": name, "arguments": {TOOLS[name]: argument}})
    return f"<tool_call>\n{call}\n</tool_call>"


def _tool_call_faults(reply: str, want: str) -> list[str]:
    """Compared as JSON: the spaces are free."""

    def calls(text: str) -> list:
        return [json.loads(body) for body in re.findall(r"<tool_call>(.*?)</tool_call>", text, re.S)]

    try:
        got = calls(reply)
    except ValueError:
        return [f"not JSON: {reply!r}"]
    return [] if got == calls(want) else [f"{want!r} is right, not {reply!r}"]


def _pick(rng: random.Random, split: str, draw: Callable[[], tuple[str, ...]]) -> tuple[str, ...]:
    """Draw until the combination belongs to the split."""
    while held_out(*(words := draw())) != (split == "held-out"):
        pass
    return words


# ---- stories ----


def _hero_and_thing(rng: random.Random, split: str) -> tuple[str, str]:
    return _pick(rng, split, lambda: (rng.choice(NAMES), rng.choice(THINGS)))


def _story(rng: random.Random, split: str) -> Sample:
    hero, thing = _hero_and_thing(rng, split)
    events = stories.make_story(rng, hero, thing)
    told = [sentence for _, sentence in events]
    if rng.random() < 0.4:  # plain: what is given goes as far as the thing, the rest is the model's
        given = 1 + next(n for n, ((_, slots), _) in enumerate(events) if slots.get("thing1") == thing)
        return Sample(
            "story", (Turn("text", " ".join(told[:given])), Turn("reply", " " + " ".join(told[given:])))
        )
    ask = rng.choice(("Tell me a story about {} and a {}.", "Write a short story about {} and a {}."))
    request = Turn("user", ask.format(hero, thing))
    return Sample("story", (request, Turn("assistant", " ".join(told))), about=(hero, thing))


# ---- questions about a text ----

# Kind of event: (question, answer) in its slots. Each asks for what only this event tells. Most answers name
# again whom or what they are about: the word before the one looked for then stands before it in the text too,
# and a small model learns to look there early. "It was red." it learns late.
STORY_QUESTIONS: dict[str, tuple[tuple[str, str], ...]] = {
    "meet": (("Who was <name1>?", "<name1> the <kind1>."),),
    "arrive": (
        ("Who was <name1>?", "<name1> the <kind1>."),
        ("Who came to the <place1>?", "<name1> came to the <place1>."),
    ),
    "own": (
        ("What colour was the <thing1>?", "The <thing1> was <colour1>."),
        ("What did <name1> have?", "<name1> had a <thing1>."),
    ),
    "take": (("Where did <name1> go with the <thing1>?", "<name1> went to the <place1>."),),
    "sad stuck": (
        ("Why was <name1> sad?", "Because the <thing1> was <where1>."),
        ("Where was the <thing1> stuck?", "The <thing1> was <where1>."),
    ),
    "cannot": (("What could <name1> not do?", "<name1> could not <able1>."),),
    "free": (("Who got the <thing1>?", "<name1> got the <thing1>."),),
    "play": (("Where did <name1> play in the morning?", "<name1> played in the <place1>."),),
    "sad gone": (("Why was <name1> sad?", "Because the <thing1> was gone."),),
    "find": (
        ("Who found the <thing1>?", "<name1> found the <thing1>."),
        ("Where was the <thing1>?", "The <thing1> was in the <place1>."),
    ),
    "drop": (("Who dropped the <thing1>?", "<name1> dropped the <thing1>."),),
    "sad broken": (("Why was <name1> sad?", "Because the <thing1> was broken."),),
    "sorry": (("Why was <name1> sorry?", "Because <she1> had dropped the <thing1>."),),
    "mend": (("How did <name1> mend the <thing1>?", "<name1> took <repair1>."),),
    "food": (("How many <food1> did <name1> have at first?", "At first <name1> had <number1> <food1>."),),
    "hungry": (("Why was <name1> hungry?", "Because <she1> had no food."),),
    "share": (("How many <food1> did <name1> give to <name2>?", "<name1> gave <number1> <food1>."),),
    "suffer": (("Why was <name1> <mood1>?", "Because <she1> had no <thing1>."),),
    "want": (("What did <name1> want?", "<name1> wanted the <thing1>."),),
    "buy": (
        ("Who bought the <thing1>?", "<name1> bought the <thing1>."),
        ("Where did <name1> buy the <thing1>?", "<name1> bought the <thing1> in the <place1>."),
    ),
    "birthday": (("Whose birthday was it?", "It was the birthday of <name1>."),),
    "gave": (("Who gave the <thing1> to <name2>?", "<name1> gave the <thing1> to <name2>."),),
    "glad again": (("Why was <name1> happy?", "Because <she1> had the <thing1> again."),),
    "home": (("What did <name1> take home?", "<name1> took the <thing1> home."),),
}

# A note and its question. The note is the answer. What a note is about stands right before "is" or "likes",
# and what it says right behind, in one token.
NOTES = (
    ("The price of the <thing1> is <number1>.", "What is the price of the <thing1>?"),
    ("The owner of the <thing1> is <name1>.", "Who is the owner of the <thing1>?"),
    ("The colour of the <thing1> is <colour1>.", "What is the colour of the <thing1>?"),
    ("The meal of the <place1> is <food1>.", "What is the meal of the <place1>?"),
    ("The guard of the <place1> is <name1>.", "Who is the guard of the <place1>?"),
    ("<name1> likes <food1>.", "What does <name1> like?"),
)

ASKED = ("{text}\n\nQuestion: {question}", "Text: {text}\n\nQuestion: {question}", "{text}\n\n{question}")
Asked = list[tuple[str, str]]  # questions about one text, with their answers
About = Callable[[random.Random, str], tuple[str, Asked]]


def _question(rng: random.Random, split: str, about: About | None = None) -> Sample:
    about = about or (_about_story if rng.random() < 0.5 else _about_notes)
    text, asked = about(rng, split)
    if rng.random() < 0.25:
        question, answer = asked[0]
        return Sample(
            "question",
            (Turn("text", f"Text: {text}\n\nQuestion: {question}\nAnswer:"), Turn("reply", f" {answer}")),
        )
    tools = (rng.choice(tuple(TOOLS)),) if rng.random() < 0.1 else ()  # offered, and not needed
    return Sample("question", _asked_in_turn(rng, text, asked), tools=tools)


def _long(rng: random.Random, split: str) -> Sample:
    """Questions about two to seven stories, each with a hero of its own."""
    told: list[list[stories.Told]] = []
    heroes: set[str] = set()
    for _ in range(rng.randint(2, 7)):
        hero, thing = _hero_and_thing(rng, split)
        while hero in heroes:
            hero, thing = _hero_and_thing(rng, split)
        heroes.add(hero)
        told.append(stories.make_story(rng, hero, thing))
    text = "\n\n".join(" ".join(sentence for _, sentence in story) for story in told)
    asked = _with_one_answer(rng, [event for story in told for event in story])
    return Sample("long", _asked_in_turn(rng, text, asked))


def _asked_in_turn(rng: random.Random, text: str, asked: Asked) -> tuple[Turn, ...]:
    """A conversation: the text with the first question, then the others alone."""
    first, *others = asked
    opening = rng.choice(ASKED).format(text=text, question=first[0])
    turns = [Turn("user", opening), Turn("assistant", first[1])]
    for question, answer in others:
        turns += [Turn("user", question), Turn("assistant", answer)]
    return tuple(turns)


def _about_story(rng: random.Random, split: str) -> tuple[str, Asked]:
    """A story, broken off in half the cases, and questions that it answers in one way only."""
    hero, thing = _hero_and_thing(rng, split)
    events = stories.make_story(rng, hero, thing)
    if rng.random() < 0.5:
        events = events[: rng.randint(2, len(events))]
    text = " ".join(sentence for _, sentence in events)
    return text, _with_one_answer(rng, events)


def _with_one_answer(rng: random.Random, events: list[stories.Told]) -> Asked:
    """Up to eight questions about the events; no other event answers them otherwise."""
    answers: dict[str, set[str]] = {}
    for question, answer in _questions_of(events):
        answers.setdefault(question, set()).add(answer)
    clear = [(q, found.pop()) for q, found in answers.items() if len(found) == 1]
    return rng.sample(clear, min(len(clear), rng.randint(1, 8)))


def _questions_of(events: list[stories.Told]) -> Iterator[tuple[str, str]]:
    for (kind, slots), _ in events:
        for question, answer in STORY_QUESTIONS.get(kind, ()):
            yield stories.fill(question, slots), stories.fill(answer, slots)
        if kind == "want":  # told of both
            other = {"name1": slots["name2"], "thing1": slots["thing2"]}
            for question, answer in STORY_QUESTIONS[kind]:
                yield stories.fill(question, other), stories.fill(answer, other)


def _about_notes(rng: random.Random, split: str) -> tuple[str, Asked]:
    """One to nine notes, with questions about most of them. No two have a name, thing or place in common.

    Half the lists have one or two notes. In these copying can be learnt before finding.
    """

    def draw() -> stories.Slots:
        words = {
            "name1": NAMES, "thing1": THINGS, "place1": PLACES,
            "colour1": COLOURS, "food1": FOODS, "number1": NUMBERS[2:],
        }  # fmt: skip
        return {slot: rng.choice(choices) for slot, choices in words.items()}

    def belongs(form: str, slots: stories.Slots) -> bool:
        return held_out(*(slots[s] for s in re.findall(r"<(\w+)>", form))) == (split == "held-out")

    asked: Asked = []
    notes: list[str] = []
    taken: set[str] = set()
    count = rng.randint(1, 2) if rng.random() < 0.5 else rng.randint(3, 9)
    questions = rng.randint((count + 1) // 2, count)
    for number in range(count):
        form, question = rng.choice(NOTES)
        slots = draw()
        while taken & {slots["name1"], slots["thing1"], slots["place1"]} or (
            number < questions and not belongs(form, slots)
        ):
            slots = draw()
        taken |= {slots["name1"], slots["thing1"], slots["place1"]}
        note = stories.fill(form, slots)
        if number < questions:
            asked.append((stories.fill(question, slots), note))
        notes.append(note)
    rng.shuffle(notes)
    return " ".join(notes), asked


# ---- tools ----

ARITHMETIC = {
    "+": ("What is {} plus {}?", "Add {} and {}.", "How much is {} + {}?"),
    "-": ("What is {} minus {}?", "How much is {} - {}?", "What is left of {} without {}?"),
    "*": ("What is {} times {}?", "Multiply {} by {}.", "How much is {} * {}?"),
    "/": ("What is {} divided by {}?", "Divide {} by {}.", "How much is {} / {}?"),
}
LOOK_UPS = {
    "weather": (("What is the weather in the {}?", "Tell me the weather at the {}."), "It is {} in the {}."),
    "price": (("What is the price of the {}?", "How much is the {}?"), "It costs {} coins."),
    "phone": (("What is the phone number of {}?", "How can I call {}?"), "The number is {}."),
}


def _tool(rng: random.Random, split: str) -> Sample:
    """Question, tool call, response, answer. Without tools: the model says that it has none."""
    name = rng.choice(tuple(TOOLS)) if rng.random() < 0.6 else "calculator"
    if name == "calculator":
        question, argument, result, answer = _arithmetic(rng, split)
    else:
        question, argument, result, answer = _look_up(rng, split, name)
    if rng.random() < 0.05:
        return Sample("tool", (Turn("user", question), Turn("assistant", "I have no tool for that.")))
    others = rng.sample([t for t in TOOLS if t != name], rng.randint(0, 2))
    tools = rng.sample([name, *others], 1 + len(others))
    turns = (Turn("user", question), Turn("assistant", tool_call(name, argument)), Turn("tool", result))
    return Sample("tool", (*turns, Turn("assistant", answer)), tools=tuple(tools))


def _arithmetic(rng: random.Random, split: str) -> tuple[str, str, str, str]:
    """(question, expression, result, answer)."""
    sign = rng.choice(tuple(ARITHMETIC))

    def draw() -> tuple[str, str]:
        a, b = rng.randint(2, 999), rng.randint(2, 999)
        if sign == "-":
            a, b = max(a, b), min(a, b)
        if sign == "/":
            b = rng.randint(2, 30)
            a = b * rng.randint(2, 33)
        return str(a), str(b)

    a, b = _pick(rng, split, draw)
    result = str(
        {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b), "/": int(a) // int(b)}[sign]
    )
    return rng.choice(ARITHMETIC[sign]).format(a, b), f"{a} {sign} {b}", result, f"The answer is {result}."


def _look_up(rng: random.Random, split: str, tool: str) -> tuple[str, str, str, str]:
    """(question, argument, result, answer). A thing or place keeps its article in the argument.

    Behind the article its token is the question's own, " kite"; behind a quotation mark it would be another,
    and which belongs to which would have to be learnt for each word.
    """
    questions, answer = LOOK_UPS[tool]
    words = {"weather": PLACES, "price": THINGS, "phone": NAMES}[tool]
    question, word = _pick(rng, split, lambda: (rng.choice(questions), rng.choice(words)))
    if tool == "weather":
        result = rng.choice(SKIES)
    else:
        result = "".join(rng.choices("123456789", k=2 if tool == "price" else 4))
    argument = word if tool == "phone" else f"the {word}"
    return question.format(word), argument, result, answer.format(result, word)
