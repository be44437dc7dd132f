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

# None begins with a vowel: an article would have to be chosen before its noun.
THINGS = (
    "badge", "bag", "ball", "balloon", "bandage", "banner", "barrel", "basket", "bat", "bead", "bell",
    "belt", "bicycle", "blanket", "blouse", "boat", "book", "bottle", "bow", "bowl", "box", "bracelet",
    "bracket", "broom", "brush", "bucket", "button", "cage", "calendar", "camera", "candle", "canoe",
    "cap", "cape", "card", "carpet", "cart", "cello", "chain", "chair", "chest", "clock", "coin",
    "comb", "compass", "cork", "cradle", "crayon", "crown", "crystal", "cup", "cushion", "diary",
    "doll", "drawer", "dress", "drum", "fan", "feather", "fiddle", "flag", "flower", "flute", "folder",
    "fork", "frame", "funnel", "gem", "globe", "glove", "guitar", "hairpin", "hammer", "handkerchief",
    "harp", "helmet", "hook", "hoop", "horn", "jacket", "jar", "jersey", "jewel", "jug", "kettle",
    "key", "keyring", "kite", "knife", "ladder", "lamp", "leaf", "letter", "locket", "magnet", "map",
    "marble", "mask", "medal", "mirror", "mitten", "mug", "napkin", "necklace", "needle", "net",
    "notebook", "paddle", "painting", "pan", "paper", "parcel", "pebble", "pen", "pencil", "photo",
    "piano", "pillow", "pin", "pipe", "pitcher", "plate", "poster", "pot", "puppet", "purse", "puzzle",
    "quilt", "racket", "raft", "rake", "rattle", "ribbon", "ring", "robe", "rope", "rug", "ruler",
    "sack", "saddle", "sandal", "scarf", "scooter", "scroll", "shell", "shirt", "shoe", "shovel",
    "skate", "skirt", "sled", "slipper", "sock", "spade", "sponge", "spool", "spoon", "stamp", "star",
    "statue", "stick", "stone", "suitcase", "sweater", "sword", "tambourine", "teapot", "thimble",
    "ticket", "top", "torch", "towel", "toy", "train", "tray", "truck", "trumpet", "trunk", "vase",
    "vest", "violin", "wagon", "wallet", "watch", "wheel", "whisk", "whistle", "wreath", "zipper",
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
    "rain": ("It began to rain.", "wet", "raincoat", "dry"),
    "snow": ("It began to snow.", "cold", "coat", "warm"),
    "sun": ("The sun began to burn.", "hot", "hat", "cool"),
    "dark": ("It began to get dark.", "afraid", "lantern", "brave"),
}

SKIES = ("sunny", "rainy", "windy", "cloudy", "snowy", "foggy")  # what the weather tool answers


def pronoun(name: str) -> str:
    return "she" if name in GIRLS else "he"
