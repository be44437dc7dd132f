"""Short stories whose characters, things and causes stay consistent, and a checker that says when they do
not.

A story is a list of events, and an event is (kind, slots): ("gave", {"name1": "Mia", ...}). One table,
SENTENCES, holds the wordings of each kind. It is used in both directions: to write an event as a sentence,
and to read a sentence back as an event. `World` replays the events and notes what cannot be: giving what one
does not hold, being sad about what did not happen, a she who was a boy. The generator and the checker share
the table and nothing else, and a generated story has no faults (tested).
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from functools import cache

from .words import (
    ABILITY_OF,
    BOYS,
    COLOURS,
    FOODS,
    GIRLS,
    KINDS,
    NAMES,
    NUMBERS,
    PLACES,
    REPAIRS,
    THINGS,
    TRAPS,
    WEATHER,
    pronoun,
)

Slots = dict[str, str]
Event = tuple[str, Slots]
Told = tuple[Event, str]  # an event and its sentence

REMEDIES = tuple(remedy for _, _, remedy, _ in WEATHER.values())

# What may stand in a slot; the digit after it tells two of a kind apart. <she1> is name1's pronoun.
SLOT_WORDS = {
    "name": NAMES,
    "kind": KINDS,
    "colour": COLOURS,
    "thing": THINGS + REMEDIES,
    "place": PLACES,
    "food": FOODS,
    "number": NUMBERS,
    "repair": REPAIRS,
    "where": tuple(TRAPS),
    "able": tuple(sorted({ability for ability, _, _ in TRAPS.values()})),
    "deed": tuple(deed for _, _, deed in TRAPS.values()),
    "mood": tuple(mood for _, mood, _, _ in WEATHER.values()),
    "better": tuple(better for _, _, _, better in WEATHER.values()),
    "she": ("she", "he"),
}

SENTENCES: dict[str, tuple[str, ...]] = {
    # Who and what there is. What is told of somebody or something stands two words behind the name, "the kite
    # was red": a small model finds it there early, by looking for the name, and far later if it comes before,
    # as in "a red kite", or three words behind.
    "meet": ("Once upon a time there was <name1> the <kind1>.", "There once lived <name1> the <kind1>."),
    "own": ("<name1> had a <thing1>, and the <thing1> was <colour1>.",),
    "take": (
        "One day <name1> took the <thing1> to the <place1>.",
        "One morning <name1> went to the <place1> with the <thing1>.",
    ),
    "walk": ("One day <name1> went to the <place1>.", "One evening <name1> went for a walk to the <place1>."),
    "arrive": (
        # Neither begins as a sentence about the hero does: the name here is always a new one.
        "Then there came <name1> the <kind1> to the <place1>.",
        "In the <place1> there was also <name1> the <kind1>.",
    ),
    # A thing gets stuck, and somebody who is able gets it out.
    **{f"stuck {where}": (mishap.format("<thing1>"),) for where, (_, mishap, _) in TRAPS.items()},
    "sad stuck": ("<name1> was sad because the <thing1> was <where1>.",),
    "cannot": ("<name1> could not <able1>.", "But <name1> did not know how to <able1>."),
    "can": ("<name1> could <able1> very well.", "Every <kind1> can <able1>, and so could <name1>."),
    "free": ("<name1> <deed1> and got the <thing1>.", "So <name1> <deed1> and came back with the <thing1>."),
    # A thing is left behind and found.
    "play": ("In the morning <name1> played with the <thing1> in the <place1>.",),
    "forget": ("Then <name1> went to the <place1> and forgot the <thing1>.",),
    "sad gone": ("<name1> was sad because the <thing1> was gone.",),
    "look": ("<name1> looked in the <place1>, but the <thing1> was not there.",),
    "remember": (
        "<name1> asked where <name2> had played, and <name2> remembered the <place1>.",
        "<name1> told <name2> to think, and <name2> thought of the <place1>.",
    ),
    "return": ("So <name1> and <name2> went back to the <place1>.",),
    "find": (
        "<name1> found the <thing1> in the <place1>.",
        "There in the <place1> <name1> found the <thing1>.",
    ),
    # A thing breaks and is mended.
    "lend": ("<name1> let <name2> hold the <thing1>.", "<name2> asked for the <thing1>, and <name1> agreed."),
    "drop": (
        "But <name1> dropped the <thing1>, and it broke.",
        "Then the <thing1> slipped from <name1> and broke.",
    ),
    "sad broken": ("<name1> was sad because the <thing1> was broken.",),
    "sorry": ("<name1> was sorry because <she1> had dropped the <thing1>.",),
    "mend": (
        "<name1> mended the <thing1> with <repair1>.",
        "So <name1> took <repair1> and mended the <thing1>.",
    ),
    "glad whole": ("<name1> was happy because the <thing1> was whole again.",),
    "forgive": ("<name1> forgave <name2>.",),
    # Food is shared.
    "food": ("At first <name1> had <number1> <food1>.",),
    "hungry": ("<name1> was hungry because <she1> had no food.",),
    "share": (
        "<name1> gave <number1> <food1> to <name2>.",
        "So <name1> shared and gave <number1> <food1> to <name2>.",
    ),
    "count": ("Now <name1> had <number1> <food1> and <name2> had <number2> <food1>.",),
    "eat": ("<name1> ate the <food1> and was not hungry any more.",),
    # Bad weather.
    **{f"weather {sky}": (beginning,) for sky, (beginning, _, _, _) in WEATHER.items()},
    "suffer": ("<name1> was <mood1> because <she1> had no <thing1>.",),
    "relieved": ("Now <name1> was <better1> because <she1> had the <thing1>.",),
    # Swapping.
    "want": ("<name1> wanted the <thing1>, and <name2> wanted the <thing2>.",),
    "swap": ("So <name1> and <name2> swapped.", "So <name1> and <name2> made a swap."),
    "after swap": ("Now <name1> had the <thing1> and <name2> had the <thing2>.",),
    # A gift.
    "birthday": ("It was the birthday of <name1>.", "<name1> had a birthday."),
    "buy": (
        "<name1> bought a <thing1> in the <place1>, and the <thing1> was <colour1>.",
        "In the <place1> <name1> found and bought a <thing1>, and the <thing1> was <colour1>.",
    ),
    "gift": ("<name1> was happy because <name2> had thought of the birthday.",),
    # How stories end.
    "gave": ("<name1> gave the <thing1> to <name2>.", "Then <name1> gave the <thing1> to <name2>."),
    "glad again": ("<name1> was happy because <she1> had the <thing1> again.",),
    # Who they are is said again here: what is never said twice, a model does not learn to look up.
    "thank": ("<name1> thanked <name2> the <kind2>.", "<name1> said thank you to <name2>."),
    "friends": (
        "From that day on <name1> the <kind1> and <name2> the <kind2> were friends.",
        "<name1> and <name2> became good friends.",
    ),
    "home": (
        "Then <name1> the <kind1> went home with the <thing1>, and the <thing1> was <colour1>.",
        "<name1> took the <thing1> home, and the <thing1> was <colour1>.",
    ),
}


def write(event: Event, rng: random.Random) -> str:
    """One of the event's sentences."""
    kind, slots = event
    return fill(rng.choice(SENTENCES[kind]), slots)


def fill(wording: str, slots: Slots) -> str:
    """The wording with its slots filled."""
    return re.sub(r"<(\w+?)(\d)>", lambda m: _word(m[1], m[2], slots), wording)


def _word(slot: str, digit: str, slots: Slots) -> str:
    return pronoun(slots[f"name{digit}"]) if slot == "she" else slots[f"{slot}{digit}"]


def read(sentence: str) -> Event | None:
    """The event that a sentence tells, or None when it is not one of ours."""
    for kind, pattern in _patterns():
        if match := pattern.fullmatch(sentence):
            return kind, match.groupdict()
    return None


@cache
def _patterns() -> list[tuple[str, re.Pattern[str]]]:
    """Each wording as a regular expression with a named group for each slot."""
    return [(kind, re.compile(_pattern(w))) for kind, wordings in SENTENCES.items() for w in wordings]


def _pattern(wording: str) -> str:
    done: set[str] = set()

    def slot(match: re.Match[str]) -> str:
        name = match[1] + match[2]
        if name in done:  # the same word again
            return f"(?P={name})"
        done.add(name)
        return f"(?P<{name}>{'|'.join(SLOT_WORDS[match[1]])})"

    return re.sub(r"<(\w+?)(\d)>", slot, re.escape(wording).replace(r"\ ", " "))


def sentences(text: str) -> list[str]:
    return re.findall(r"[^.]+\.?", " ".join(text.split()).replace(". ", ".")) if text.strip() else []


def check_story(text: str) -> list[str]:
    """What is wrong with a story, a line for each fault; empty when it is consistent and complete.

    A sentence that no event reads as, an event that the world so far does not allow, and a story that stops
    before it is over ("friends" or "home" ends one) are faults.
    """
    world = World()
    kind = ""
    told = sentences(text)
    for number, sentence in enumerate(told, start=1):
        event = read(sentence)
        if event is None:
            world.faults.append(f"sentence {number}: not a sentence of these stories: {sentence}")
            continue
        kind = event[0]
        before = len(world.faults)
        world.happen(event, sentence)
        world.faults[before:] = [f"sentence {number}: {fault}: {sentence}" for fault in world.faults[before:]]
    if kind not in ("friends", "home"):
        world.faults.append("the story stops before its end")
    if len(set(told)) < len(told):
        world.faults.append("a sentence is told twice")
    return world.faults


class World:
    """What is so at one moment of a story. `happen` tells it the next event and collects what cannot be."""

    def __init__(self) -> None:
        self.kind: Slots = {}  # name -> kind
        self.place: Slots = {}  # name -> place
        self.colour: Slots = {}  # thing -> colour
        self.owner: Slots = {}  # thing -> the name it belongs to
        self.holder: Slots = {}  # thing -> the name that has it now; absent when nobody has
        self.lies: Slots = {}  # thing -> the place where it was left
        self.trap: Slots = {}  # thing -> "in the tree"
        self.broken: Slots = {}  # thing -> who dropped it
        self.dropped: Slots = {}  # the same, and stays when the thing is mended
        self.count: dict[tuple[str, str], int] = {}  # name, food -> how many
        self.hungry: set[str] = set()
        self.weather = ""
        self.suffers: Slots = {}  # name -> the thing missed in this weather
        self.birthday = ""
        self.wants: Slots = {}  # name -> thing
        self.helped: set[tuple[str, str]] = set()  # (who, whom)
        self.faults: list[str] = []

    def happen(self, event: Event, sentence: str) -> None:
        kind, slots = event
        name = {key: word for key, word in slots.items() if key.startswith("name")}
        if kind not in ("meet", "arrive"):
            for slot, who in name.items():
                self.need(who in self.kind, f"{who} has not been introduced")
                kind_told = slots.get(f"kind{slot[-1]}", self.kind.get(who))
                self.need(kind_told == self.kind.get(who), f"{who} is no {kind_told}")
        if len(set(name.values())) < len(name):
            self.faults.append("somebody does something to themselves")
        if "she1" in slots:
            right = pronoun(slots["name1"])
            self.need(slots["she1"] == right, f"{slots['name1']} is {right}, not {slots['she1']}")
        if kind not in ("own", "buy", "suffer"):
            for thing in (slots[s] for s in ("thing1", "thing2") if s in slots):
                self.need(thing in self.colour, f"no {thing} has been mentioned")
            if "colour1" in slots and "thing1" in slots:
                colour = self.colour.get(slots["thing1"], "")
                self.need(slots["colour1"] == colour, f"the {slots['thing1']} is {colour}")
        verb, _, rest = kind.partition(" ")
        if verb in ("stuck", "weather"):  # the rest says where, or which
            getattr(self, f"_{verb}")(rest, **slots)
        else:
            getattr(self, f"_{kind.replace(' ', '_')}")(**slots)

    def need(self, condition: bool, fault: str) -> None:
        if not condition:
            self.faults.append(fault)

    def needs_holder(self, name: str, thing: str) -> None:
        self.need(self.holder.get(thing) == name, f"{name} does not have the {thing}")

    def needs_together(self, one: str, other: str) -> None:
        here, there = self.place.get(one, ""), self.place.get(other, "")
        self.need(here == there, f"{one} and {other} are not in the same place")

    # ---- one method for each kind of event ----

    def _meet(self, name1: str, kind1: str) -> None:
        self.need(name1 not in self.kind, f"{name1} is already known")
        if kind1 == "girl":
            self.need(name1 in GIRLS, f"{name1} is not a girl")
        if kind1 == "boy":
            self.need(name1 in BOYS, f"{name1} is not a boy")
        self.kind[name1] = kind1

    def _arrive(self, name1: str, kind1: str, place1: str) -> None:
        self.need(place1 in self.place.values(), f"nobody is in the {place1}")
        self._meet(name1, kind1)
        self.place[name1] = place1

    def _own(self, name1: str, colour1: str, thing1: str) -> None:
        self.need(thing1 not in self.colour, f"there is already a {thing1}")
        self.colour[thing1] = colour1
        self.owner[thing1] = self.holder[thing1] = name1

    def _take(self, name1: str, thing1: str, place1: str) -> None:
        self.needs_holder(name1, thing1)
        self.place[name1] = place1

    def _walk(self, name1: str, place1: str) -> None:
        self.place[name1] = place1

    def _stuck(self, where: str, thing1: str) -> None:
        self.need(thing1 in self.holder, f"nobody has the {thing1}")
        self.holder.pop(thing1, None)
        self.trap[thing1] = where

    def _sad_stuck(self, name1: str, thing1: str, where1: str) -> None:
        self.need(self.trap.get(thing1) == where1, f"the {thing1} is not {where1}")
        self.need(self.owner.get(thing1) == name1, f"the {thing1} is not {name1}'s")

    def _cannot(self, name1: str, able1: str) -> None:
        self.need(ABILITY_OF.get(self.kind.get(name1, "")) != able1, f"{name1} can {able1}")
        self.need(any(TRAPS[where][0] == able1 for where in self.trap.values()), f"nothing asks to {able1}")

    def _can(self, name1: str, able1: str, kind1: str = "") -> None:
        self.need(ABILITY_OF.get(self.kind.get(name1, "")) == able1, f"{name1} cannot {able1}")

    def _free(self, name1: str, deed1: str, thing1: str) -> None:
        ability, _, deed = TRAPS.get(self.trap.get(thing1, ""), ("", "", ""))
        self.need(deed == deed1, f"that does not free the {thing1}")
        self.need(ABILITY_OF.get(self.kind.get(name1, "")) == ability, f"{name1} is not able to")
        self.trap.pop(thing1, None)
        self.holder[thing1] = name1
        self.helped.add((name1, self.owner.get(thing1, "")))

    def _play(self, name1: str, thing1: str, place1: str) -> None:
        self._take(name1, thing1, place1)

    def _forget(self, name1: str, place1: str, thing1: str) -> None:
        self.needs_holder(name1, thing1)
        self.need(self.place.get(name1) != place1, f"{name1} is already there")
        self.holder.pop(thing1, None)
        self.lies[thing1] = self.place.get(name1, "")
        self.place[name1] = place1

    def _sad_gone(self, name1: str, thing1: str) -> None:
        self.need(thing1 in self.lies, f"the {thing1} is not gone")
        self.need(self.owner.get(thing1) == name1, f"the {thing1} is not {name1}'s")

    def _look(self, name1: str, place1: str, thing1: str) -> None:
        self.need(self.place.get(name1) == place1, f"{name1} is not in the {place1}")
        self.need(self.lies.get(thing1) not in (None, place1), f"the {thing1} is there")

    def _remember(self, name1: str, name2: str, place1: str) -> None:
        self.need(place1 in self.lies.values(), f"nothing was left in the {place1}")
        self.needs_together(name1, name2)

    def _return(self, name1: str, name2: str, place1: str) -> None:
        self.need(place1 in self.lies.values(), f"nothing was left in the {place1}")
        self.place[name1] = self.place[name2] = place1

    def _find(self, name1: str, thing1: str, place1: str) -> None:
        self.need(self.lies.get(thing1) == place1, f"the {thing1} is not in the {place1}")
        self.need(self.place.get(name1) == place1, f"{name1} is not in the {place1}")
        self.lies.pop(thing1, None)
        self.holder[thing1] = name1
        self.helped.add((name1, self.owner.get(thing1, "")))

    def _lend(self, name1: str, name2: str, thing1: str) -> None:
        self.needs_holder(name1, thing1)
        self.needs_together(name1, name2)
        self.holder[thing1] = name2

    def _drop(self, name1: str, thing1: str) -> None:
        self.needs_holder(name1, thing1)
        self.need(thing1 not in self.broken, f"the {thing1} is already broken")
        self.broken[thing1] = self.dropped[thing1] = name1

    def _sad_broken(self, name1: str, thing1: str) -> None:
        self.need(thing1 in self.broken, f"the {thing1} is not broken")
        self.need(self.owner.get(thing1) == name1, f"the {thing1} is not {name1}'s")

    def _sorry(self, name1: str, she1: str, thing1: str) -> None:
        self.need(self.dropped.get(thing1) == name1, f"{name1} did not drop the {thing1}")

    def _mend(self, name1: str, thing1: str, repair1: str) -> None:
        self.needs_holder(name1, thing1)
        self.need(thing1 in self.broken, f"the {thing1} is not broken")
        self.broken.pop(thing1, None)
        self.helped.add((name1, self.owner.get(thing1, "")))

    def _glad_whole(self, name1: str, thing1: str) -> None:
        self.need(thing1 in self.dropped and thing1 not in self.broken, f"the {thing1} was not mended")
        self.need(self.owner.get(thing1) == name1, f"the {thing1} is not {name1}'s")

    def _forgive(self, name1: str, name2: str) -> None:
        guilty = any(who == name2 and self.owner.get(thing) == name1 for thing, who in self.dropped.items())
        self.need(guilty, f"{name2} did {name1} no harm")

    def _food(self, name1: str, number1: str, food1: str) -> None:
        self.need((name1, food1) not in self.count, f"{name1}'s {food1} were counted before")
        self.count[name1, food1] = NUMBERS.index(number1)

    def _hungry(self, name1: str, she1: str) -> None:
        self.need(not any(n for (who, _), n in self.count.items() if who == name1), f"{name1} has food")
        self.hungry.add(name1)

    def _share(self, name1: str, number1: str, food1: str, name2: str) -> None:
        given, has = NUMBERS.index(number1), self.count.get((name1, food1), 0)
        self.need(0 < given <= has, f"{name1} has {has} {food1}")
        self.needs_together(name1, name2)
        self.count[name1, food1] = has - given
        self.count[name2, food1] = self.count.get((name2, food1), 0) + given
        self.helped.add((name1, name2))

    def _count(self, name1: str, number1: str, food1: str, name2: str, number2: str) -> None:
        for who, number in ((name1, number1), (name2, number2)):
            has = self.count.get((who, food1), 0)
            self.need(has == NUMBERS.index(number), f"{who} has {has} {food1}")

    def _eat(self, name1: str, food1: str) -> None:
        self.need(self.count.get((name1, food1), 0) > 0, f"{name1} has no {food1}")
        self.need(name1 in self.hungry, f"{name1} is not hungry")

    def _weather(self, sky: str) -> None:
        self.weather = sky

    def _suffer(self, name1: str, mood1: str, she1: str, thing1: str) -> None:
        _, mood, remedy, _ = WEATHER.get(self.weather, ("", "", "", ""))
        self.need((mood, remedy) == (mood1, thing1), "that does not come of this weather")
        self.need(self.holder.get(thing1) != name1, f"{name1} has the {thing1}")
        self.suffers[name1] = thing1

    def _relieved(self, name1: str, better1: str, she1: str, thing1: str) -> None:
        self.needs_holder(name1, thing1)
        self.need(self.suffers.get(name1) == thing1, f"{name1} did not miss the {thing1}")
        self.need(WEATHER.get(self.weather, ("",) * 4)[3] == better1, "that does not come of this weather")

    def _want(self, name1: str, thing1: str, name2: str, thing2: str) -> None:
        self.needs_holder(name1, thing2)
        self.needs_holder(name2, thing1)
        self.wants = {name1: thing1, name2: thing2}

    def _swap(self, name1: str, name2: str) -> None:
        self.need({name1, name2} == set(self.wants), "they did not want to")
        self.needs_together(name1, name2)
        self.holder.update({thing: name for name, thing in self.wants.items()})
        self.owner.update({thing: name for name, thing in self.wants.items()})

    def _after_swap(self, name1: str, thing1: str, name2: str, thing2: str) -> None:
        self.needs_holder(name1, thing1)
        self.needs_holder(name2, thing2)

    def _birthday(self, name1: str) -> None:
        self.birthday = name1

    def _buy(self, name1: str, colour1: str, thing1: str, place1: str) -> None:
        self.need(self.place.get(name1) == place1, f"{name1} is not in the {place1}")
        self._own(name1, colour1, thing1)

    def _gift(self, name1: str, name2: str) -> None:
        self.need(self.birthday == name1, f"it is not {name1}'s birthday")
        self.need((name2, name1) in self.helped, f"{name2} gave {name1} nothing")

    def _gave(self, name1: str, thing1: str, name2: str) -> None:
        self.needs_holder(name1, thing1)
        self.holder[thing1] = name2
        self.helped.add((name1, name2))

    def _glad_again(self, name1: str, she1: str, thing1: str) -> None:
        self.needs_holder(name1, thing1)
        self.need(self.owner.get(thing1) == name1, f"the {thing1} was not {name1}'s before")

    def _thank(self, name1: str, name2: str, kind2: str = "") -> None:
        self.need((name2, name1) in self.helped, f"{name2} did nothing for {name1}")

    def _friends(self, name1: str, name2: str, kind1: str = "", kind2: str = "") -> None:
        pass

    def _home(self, name1: str, colour1: str, thing1: str, kind1: str = "") -> None:
        self.needs_holder(name1, thing1)


# ---- plots ----


def _often(rng: random.Random, words: Sequence[str], but: str) -> str:
    """One of the words, the first far more often than the last: the n-th has the weight 1 / n (Zipf's law).

    A model that always takes the likeliest word could not choose among 200 equally likely things: each would
    have half a percent, and a thing that was just named, wrong as it is, easily more.
    """
    others = [w for w in words if w != but]
    return rng.choices(others, weights=[1 / n for n in range(1, len(others) + 1)])[0]


class Cast:
    """Who and what one story is about, drawn once."""

    def __init__(self, rng: random.Random, hero: str, thing: str) -> None:
        self.hero, self.thing = hero, thing
        # Beginning with the other half, so that the likeliest friend is never the hero.
        self.friend = _often(rng, BOYS + GIRLS if hero in GIRLS else NAMES, but=hero)
        self.other_thing = _often(rng, THINGS, but=thing)
        self.hero_kind, self.friend_kind = _kind(rng, hero), _kind(rng, self.friend)
        self.colour, self.other_colour = rng.sample(COLOURS, 2)
        self.place = _often(rng, PLACES, but="")
        self.other_place = _often(rng, PLACES, but=self.place)
        self.food = rng.choice(FOODS)


def _kind(rng: random.Random, name: str) -> str:
    """A quarter of all characters are children."""
    child = "girl" if name in GIRLS else "boy"
    return child if rng.random() < 0.25 else rng.choice(tuple(ABILITY_OF))


def _stuck(c: Cast, rng: random.Random) -> Iterator[Event]:
    where = _often(rng, _traps_for(c.hero_kind), but="")
    able, _, deed = TRAPS[where]
    c.friend_kind = rng.choice([kind for kind, ability in ABILITY_OF.items() if ability == able])
    yield "take", {"name1": c.hero, "thing1": c.thing, "place1": c.place}
    yield f"stuck {where}", {"thing1": c.thing}
    yield "sad stuck", {"name1": c.hero, "thing1": c.thing, "where1": where}
    yield "cannot", {"name1": c.hero, "able1": able}
    yield "arrive", {"name1": c.friend, "kind1": c.friend_kind, "place1": c.place}
    yield "can", {"name1": c.friend, "able1": able, "kind1": c.friend_kind}
    yield "free", {"name1": c.friend, "deed1": deed, "thing1": c.thing}
    yield from _return_to_hero(c, rng)


def _traps_for(kind: str) -> list[str]:
    """The traps that such a hero cannot open, in an order of the kind's own: the one that it can open would
    come last. A model learns to look at the kind when what is likeliest hangs on it.
    """
    traps = list(TRAPS)
    opened = [where for where in traps if TRAPS[where][0] == ABILITY_OF.get(kind)]
    if not opened:  # a child
        return traps
    at = traps.index(opened[0])
    return traps[at + 1 :] + traps[:at]


def _return_to_hero(c: Cast, rng: random.Random) -> Iterator[Event]:
    yield "gave", {"name1": c.friend, "thing1": c.thing, "name2": c.hero}
    yield "glad again", {"name1": c.hero, "thing1": c.thing}
    yield "thank", {"name1": c.hero, "name2": c.friend, "kind2": c.friend_kind}
    yield _ending(c, rng)


def _ending(c: Cast, rng: random.Random) -> Event:
    if rng.random() < 0.5:
        return _friends(c)
    return "home", {"name1": c.hero, "kind1": c.hero_kind, "colour1": c.colour, "thing1": c.thing}


def _friends(c: Cast) -> Event:
    kinds = {"kind1": c.hero_kind, "kind2": c.friend_kind}
    return "friends", {"name1": c.hero, "name2": c.friend} | kinds


def _lost(c: Cast, rng: random.Random) -> Iterator[Event]:
    yield "play", {"name1": c.hero, "thing1": c.thing, "place1": c.place}
    yield "forget", {"name1": c.hero, "thing1": c.thing, "place1": c.other_place}
    yield "sad gone", {"name1": c.hero, "thing1": c.thing}
    yield "look", {"name1": c.hero, "thing1": c.thing, "place1": c.other_place}
    yield "arrive", {"name1": c.friend, "kind1": c.friend_kind, "place1": c.other_place}
    yield "remember", {"name1": c.friend, "name2": c.hero, "place1": c.place}
    yield "return", {"name1": c.hero, "name2": c.friend, "place1": c.place}
    yield "find", {"name1": c.friend, "thing1": c.thing, "place1": c.place}
    yield from _return_to_hero(c, rng)


def _broken(c: Cast, rng: random.Random) -> Iterator[Event]:
    yield "take", {"name1": c.hero, "thing1": c.thing, "place1": c.place}
    yield "arrive", {"name1": c.friend, "kind1": c.friend_kind, "place1": c.place}
    yield "lend", {"name1": c.hero, "name2": c.friend, "thing1": c.thing}
    yield "drop", {"name1": c.friend, "thing1": c.thing}
    yield "sad broken", {"name1": c.hero, "thing1": c.thing}
    yield "sorry", {"name1": c.friend, "thing1": c.thing}
    repair = rng.choice(REPAIRS)
    yield "mend", {"name1": c.friend, "thing1": c.thing, "repair1": repair}
    yield "gave", {"name1": c.friend, "thing1": c.thing, "name2": c.hero}
    yield "glad whole", {"name1": c.hero, "thing1": c.thing}
    yield "forgive", {"name1": c.hero, "name2": c.friend}
    yield _ending(c, rng)


def _shared(c: Cast, rng: random.Random) -> Iterator[Event]:
    total = rng.randint(4, 9)
    given = rng.randint(2, total - 2)  # the words are plural: never one
    yield "food", {"name1": c.hero, "number1": NUMBERS[total], "food1": c.food}
    yield "take", {"name1": c.hero, "thing1": c.thing, "place1": c.place}
    yield "arrive", {"name1": c.friend, "kind1": c.friend_kind, "place1": c.place}
    yield "hungry", {"name1": c.friend}
    yield "share", {"name1": c.hero, "number1": NUMBERS[given], "food1": c.food, "name2": c.friend}
    yield "count", {
        "name1": c.hero, "number1": NUMBERS[total - given], "food1": c.food,
        "name2": c.friend, "number2": NUMBERS[given],
    }  # fmt: skip
    yield "eat", {"name1": c.friend, "food1": c.food}
    yield "thank", {"name1": c.friend, "name2": c.hero, "kind2": c.hero_kind}
    yield _ending(c, rng)


def _weather(c: Cast, rng: random.Random) -> Iterator[Event]:
    sky, (_, mood, remedy, better) = rng.choice(list(WEATHER.items()))
    yield "take", {"name1": c.hero, "thing1": c.thing, "place1": c.place}
    yield f"weather {sky}", {}
    yield "suffer", {"name1": c.hero, "mood1": mood, "thing1": remedy}
    yield "arrive", {"name1": c.friend, "kind1": c.friend_kind, "place1": c.place}
    yield "own", {"name1": c.friend, "colour1": c.other_colour, "thing1": remedy}
    yield "gave", {"name1": c.friend, "thing1": remedy, "name2": c.hero}
    yield "relieved", {"name1": c.hero, "better1": better, "thing1": remedy}
    yield "thank", {"name1": c.hero, "name2": c.friend, "kind2": c.friend_kind}
    yield _ending(c, rng)


def _swapped(c: Cast, rng: random.Random) -> Iterator[Event]:
    yield "take", {"name1": c.hero, "thing1": c.thing, "place1": c.place}
    yield "arrive", {"name1": c.friend, "kind1": c.friend_kind, "place1": c.place}
    yield "own", {"name1": c.friend, "colour1": c.other_colour, "thing1": c.other_thing}
    yield "want", {"name1": c.hero, "thing1": c.other_thing, "name2": c.friend, "thing2": c.thing}
    yield "swap", {"name1": c.hero, "name2": c.friend}
    yield "after swap", {"name1": c.hero, "thing1": c.other_thing, "name2": c.friend, "thing2": c.thing}
    if rng.random() < 0.5:
        yield _friends(c)
    else:
        got = {"colour1": c.other_colour, "thing1": c.other_thing}
        yield "home", {"name1": c.hero, "kind1": c.hero_kind} | got


def _gift(c: Cast, rng: random.Random) -> Iterator[Event]:
    yield "birthday", {"name1": c.hero}
    yield "meet", {"name1": c.friend, "kind1": c.friend_kind}
    yield "walk", {"name1": c.friend, "place1": c.place}
    yield "buy", {"name1": c.friend, "colour1": c.colour, "thing1": c.thing, "place1": c.place}
    yield "gave", {"name1": c.friend, "thing1": c.thing, "name2": c.hero}
    yield "gift", {"name1": c.hero, "name2": c.friend}
    yield "thank", {"name1": c.hero, "name2": c.friend, "kind2": c.friend_kind}
    yield _ending(c, rng)


PLOTS = (_stuck, _lost, _broken, _shared, _weather, _swapped, _gift)


def make_story(rng: random.Random, hero: str, thing: str) -> list[Told]:
    """The events of one story about `hero` and `thing`, each with its sentence."""
    cast = Cast(rng, hero, thing)
    plot = rng.choice(PLOTS)
    events: list[Event] = [("meet", {"name1": hero, "kind1": cast.hero_kind})]
    if plot is not _gift:  # there the thing is only bought later
        events.append(("own", {"name1": hero, "colour1": cast.colour, "thing1": thing}))
    events.extend(plot(cast, rng))
    return [(event, write(event, rng)) for event in events]
