"""The few hundred things that the corpus speaks of, and what is true of them.

Every word list is closed: a story that uses another word is not one of ours, and `check_story` says so.
"""

GIRLS = (
    "Anna", "Bella", "Clara", "Daisy", "Ella", "Freya", "Hanna", "Ivy", "Julia", "Kira",
    "Lily", "Mia", "Nora", "Olga", "Rosa", "Sara", "Tessa", "Vera", "Wilma", "Zoe",
)  # fmt: skip
BOYS = (
    "Adam", "Ben", "Carl", "David", "Emil", "Finn", "Hugo", "Ivan", "Jack", "Karl",
    "Leo", "Max", "Noah", "Otto", "Paul", "Rico", "Sam", "Tom", "Victor", "Yuri",
)  # fmt: skip
NAMES = GIRLS + BOYS

# Who can do what. A trap is only opened by somebody who can.
ABILITY_OF = {
    "cat": "climb", "squirrel": "climb", "monkey": "climb",
    "duck": "swim", "frog": "swim", "otter": "swim",
    "mouse": "dig", "rabbit": "dig", "mole": "dig",
    "bear": "lift", "horse": "lift", "elephant": "lift",
    "owl": "fly", "crow": "fly", "swan": "fly",
}  # fmt: skip
PEOPLE = ("girl", "boy")
KINDS = PEOPLE + tuple(ABILITY_OF)

# Where a thing gets stuck: the ability that gets it out, what happened, and what the helper did.
TRAPS = {
    "in the tree": ("climb", "The wind blew the {} into a tall tree.", "climbed up the tree"),
    "in the water": ("swim", "The {} fell into the deep water.", "swam across the water"),
    "in the hole": ("dig", "The {} rolled into a small hole.", "dug into the hole"),
    "under the rock": ("lift", "A big rock fell on the {}.", "lifted the rock"),
    "on the roof": ("fly", "The {} landed high up on the roof.", "flew up to the roof"),
}

COLOURS = ("red", "blue", "green", "yellow", "white", "black", "brown", "pink", "grey", "orange")

THINGS = (
    "ball", "basket", "bell", "belt", "blanket", "boat", "book", "bottle", "bow", "bowl",
    "box", "bracelet", "brush", "bucket", "button", "candle", "card", "chain", "chair", "clock",
    "coin", "comb", "cup", "doll", "dress", "drum", "fan", "feather", "flag", "flower",
    "flute", "fork", "glove", "hammer", "horn", "jar", "jug", "key", "kite", "knife",
    "ladder", "lamp", "leaf", "letter", "map", "mask", "mirror", "mug", "necklace", "needle",
    "net", "notebook", "paddle", "painting", "pan", "paper", "pen", "pencil", "pillow", "pipe",
    "plate", "pot", "puppet", "purse", "puzzle", "ribbon", "ring", "rope", "rug", "sack",
    "saddle", "scarf", "shell", "shoe", "shovel", "sock", "spoon", "stamp", "star", "stick",
    "stone", "sword", "ticket", "top", "towel", "train", "tray", "trumpet", "truck", "vase",
    "violin", "wagon", "wallet", "watch", "wheel", "whistle",
)  # fmt: skip

FOODS = (
    "apples", "pears", "plums", "cherries", "grapes", "lemons", "melons", "berries", "nuts", "carrots",
    "beans", "potatoes", "tomatoes", "onions", "eggs", "cookies", "cakes", "pies", "rolls", "pancakes",
    "noodles", "mushrooms", "peaches", "figs",
)  # fmt: skip

PLACES = (
    "park", "forest", "garden", "meadow", "beach", "harbour", "market", "library", "school", "kitchen",
    "attic", "cellar", "barn", "stable", "mill", "castle", "tower", "cave", "valley", "village",
    "square", "station", "bakery", "museum", "tent", "cabin", "farm", "orchard", "church", "office",
)  # fmt: skip

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
REPAIRS = ("glue", "tape", "string", "wire")

# Bad weather: how it begins, how it makes one feel, and the thing that helps, which makes one feel better.
WEATHER = {
    "rain": ("It began to rain.", "wet", "umbrella", "dry"),
    "snow": ("It began to snow.", "cold", "coat", "warm"),
    "sun": ("The sun began to burn.", "hot", "hat", "cool"),
    "dark": ("It began to get dark.", "afraid", "lantern", "brave"),
}

SKIES = ("sunny", "rainy", "windy", "cloudy", "snowy", "foggy")  # what the weather tool answers


def pronoun(name: str) -> str:
    return "she" if name in GIRLS else "he"
