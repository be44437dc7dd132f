"""The few hundred things that the corpus speaks of, and what is true of them.

Every word list is closed: a story that uses another word is not one of ours, and `check_story` says so.
"""

GIRLS = (
    "Anna", "Bella", "Clara", "Daisy", "Ella", "Freya", "Gina", "Hanna", "Helga", "Ivy", "Julia", "Kira",
    "Lena", "Lily", "Maud", "Mia", "Nina", "Nora", "Olga", "Paula", "Rita", "Rosa", "Sara", "Selma",
    "Tessa", "Tilda", "Ursula", "Vera", "Wilma", "Zoe",
)  # fmt: skip
BOYS = (
    "Adam", "Ben", "Bruno", "Carl", "David", "Dino", "Emil", "Eric", "Felix", "Finn", "Gustav", "Henry",
    "Hugo", "Ivan", "Jack", "Karl", "Lars", "Leo", "Max", "Milo", "Noah", "Oscar", "Otto", "Paul", "Rico",
    "Sam", "Simon", "Tom", "Victor", "Yuri",
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
    "backpack", "badge", "bag", "ball", "balloon", "bandage", "bangle", "banner", "barrel", "barrow",
    "basin", "basket", "bat", "bead", "beaker", "bell", "belt", "bench", "bicycle", "binder", "blade",
    "blanket", "block", "blouse", "board", "boat", "bolt", "bonnet", "book", "boot", "bottle", "bow",
    "bowl", "box", "bracelet", "bracket", "brick", "brooch", "broom", "brush", "bucket", "buckle", "bugle",
    "button", "cage", "calendar", "camera", "candle", "cane", "canister", "canoe", "canvas", "cap", "cape",
    "card", "carpet", "cart", "casket", "cello", "chain", "chair", "charm", "chest", "chime",
    "clip", "cloak", "clock", "cloth", "coaster", "coin", "collar", "comb", "compass", "cone", "copybook",
    "cord", "cork", "cradle", "crate", "crayon", "crown", "crystal", "cube", "cup", "curtain", "cushion",
    "cymbal", "dagger", "dial", "diary", "disc", "dish", "doll", "dollhouse", "drawer", "dress", "drum",
    "dustpan", "fan", "feather", "fiddle", "flag", "flask", "flower", "flute", "folder", "fork", "frame",
    "funnel", "garland", "gem", "globe", "glove", "goblet", "gong", "gown", "grater", "guitar", "hairpin",
    "hammer", "hamper", "handkerchief", "harness", "harp", "helmet", "hook", "hoop", "horn", "hose",
    "jacket", "jar", "jersey", "jewel", "jug", "jumper", "kettle", "key", "keyring", "kite", "knife",
    "ladder", "ladle", "lamp", "lasso", "leaf", "leash", "lens", "letter", "lid", "lock", "locket", "lute",
    "magnet", "mallet", "map", "marble", "mask", "mat", "mattress", "medal", "megaphone", "mirror",
    "mitten", "moccasin", "mop", "mug", "nail", "napkin", "necklace", "needle", "nest", "net", "notebook",
    "package", "paddle", "padlock", "painting", "palette", "pan", "paper", "parcel", "pebble", "pen",
    "pencil", "photo", "piano", "pillow", "pin", "pipe", "pitcher", "pitchfork", "plank", "plaque", "plate",
    "pointer", "poster", "pot", "pouch", "prism", "pump", "puppet", "purse", "puzzle", "quilt", "racket",
    "raft", "rag", "rake", "rattle", "ribbon", "ring", "robe", "rocket", "rod", "roller", "rope", "rug",
    "ruler", "sack", "saddle", "sandal", "satchel", "saucer", "saw", "scale", "scarf", "scooter", "screen",
    "scroll", "seal", "shawl", "shell", "shield", "shirt", "shoe", "shovel", "sieve", "sign", "skate",
    "skirt", "sled", "sleigh", "sling", "slipper", "sock", "spade", "spear", "sponge", "spool", "spoon",
    "spring", "stamp", "star", "statue", "stick", "stone", "stool", "strap", "suitcase", "surfboard",
    "sweater", "swing", "sword", "tablecloth", "tag", "tambourine", "teapot", "thimble", "ticket", "tile",
    "tin", "top", "torch", "towel", "toy", "tractor", "train", "tray", "trolley", "trombone", "truck",
    "trumpet", "trunk", "tube", "tunic", "vase", "veil", "vest", "violin", "wagon", "wallet", "wand",
    "watch", "wheel", "whisk", "whistle", "windmill", "wreath", "wrench", "zipper", "zither",
)  # fmt: skip

FOODS = (
    "apples", "pears", "plums", "cherries", "grapes", "lemons", "melons", "berries", "nuts", "carrots",
    "beans", "potatoes", "tomatoes", "onions", "eggs", "cookies", "cakes", "pies", "rolls", "pancakes",
    "noodles", "mushrooms", "peaches", "figs", "beets", "dates", "pretzels", "waffles", "radishes",
    "turnips", "walnuts", "olives", "peppers", "muffins",
)  # fmt: skip

PLACES = (
    "park", "forest", "garden", "meadow", "beach", "harbour", "market", "library", "school", "kitchen",
    "attic", "cellar", "barn", "stable", "mill", "castle", "tower", "cave", "valley", "village", "square",
    "station", "bakery", "museum", "tent", "cabin", "farm", "orchard", "church", "office", "bridge", "lake",
    "theatre", "hotel", "palace", "temple", "shop", "playground", "desert", "canyon",
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
