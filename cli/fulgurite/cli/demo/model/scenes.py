"""The scenes of the stories, as rules for `grammar.Grammar`: storms, towers, rivers, and children with names.

Only text lives here. `$hero`, `$friend`, `$third`, `$river` are names; other slots take their values from
VALUES.
"""

from __future__ import annotations

import re

from fulgurite.cli.demo.model.grammar import Grammar

VALUES = {
    "place": ("lighthouse", "tower", "mill", "bell tower", "watch house", "boat house", "stone bridge"),
    "thing": ("lamp", "lantern", "rope", "kite", "map", "bell", "drum", "key", "mirror", "copper wire"),
    "animal": ("goat", "dog", "cat", "horse", "heron", "donkey", "crow", "fox"),
    "storm": ("storm", "thunderstorm", "gale", "squall"),
    "hill": ("hill", "cliff", "ridge", "headland", "dune"),
}

RULES = {
    "story": (
        "<opening> <company> <omen> <deed> <strike> <after> <ending>",
        "<opening> <company> <omen> <talk> <strike> <after> <ending>",
        "<opening> <omen> <alone> <climb> <strike> <after> <ending>",
        "<opening> <company> <search> <found> <omen> <shelter> <ending>",
        "<opening> <alone> <search> <found> <talk_after> <ending>",
        "<opening> <company> <roll> <omen> <strike> <after> <ending>",
        "<opening> <company> <river_deed> <talk> <omen> <shelter> <ending>",
        "<opening> <alone> <omen> <night_watch> <strike> <after> <ending>",
    ),
    # Where it is.
    "opening": (
        "On the bank of the $river stood <an_old> $place.",
        "Above the river $river there was a $hill, and on the $hill stood <an_old> $place.",
        "Where the $river meets the sea, there is <an_old> $place.",
        "Long ago, on <a_lonely> $hill, people built a $place and called it $river.",
        "In the village of $river stood <an_old> $place that nobody used.",
        "The people of $river tell this about the $place on the $hill.",
        "Every child in $river knows the $place on the $hill.",
        "There was once a $place at the end of the road to $river.",
        "One <season>, when the $river was high, only the $place stood above the water.",
    ),
    "an_old": ("an old", "a small", "a tall", "a crooked", "a white", "a silent"),
    "a_lonely": ("a lonely", "a bare", "a windy", "a steep"),
    "season": ("spring", "autumn", "winter", "summer", "March", "November"),
    # Who is there.
    "company": (
        "Three children lived <near_by>: $hero, $friend and $third.",
        "$hero came there <often> with $friend and $third.",
        "$hero lived <near_by> with $friend, and $third came <often> to visit.",
        "$friend and $third were the best friends of $hero.",
        "$hero was <age> years old, $friend was a little older, and $third was the youngest.",
        "$hero had <a_thing_wish>, and so had $friend and $third.",
        "There lived $hero and $friend, and a $animal that they called $third.",
    ),
    "alone": (
        "$hero lived there alone with a $animal called $friend.",
        "$hero looked after it, and $friend the $animal looked after $hero.",
        "@She was called $hero, and @her $animal was called $friend.",
        "A child called $hero slept there, and at @her feet slept $friend, a <colour> $animal.",
        "Nobody lived there but $hero and a <colour> $animal called $friend.",
    ),
    "near_by": ("near by", "in its shadow", "behind it", "a mile away", "at the foot of the $hill"),
    "often": ("often", "every day", "on Sundays", "after school", "in the evening"),
    "age": ("seven", "eight", "nine", "ten", "eleven", "twelve"),
    "colour": ("grey", "black", "white", "brown", "three-legged", "very old", "half-blind"),
    "a_thing_wish": ("a plan", "a secret", "one great wish", "no fear of storms", "a $thing"),
    # What the sky does.
    "omen": (
        "Then a $storm came up <from>.",
        "<one_evening> a $storm came <from>, and the air tasted of <metal>.",
        "<one_evening> the sky turned <sky> and the birds fell silent.",
        "<one_evening> the clouds stood over the $hill like <clouds>.",
        "The wind <wind>, and <thunder>.",
        "First came the wind, then the rain, and then <thunder>.",
        "<one_evening> it grew so dark that $hero could hardly see the $place.",
    ),
    "from": (
        "from the sea",
        "over the $hill",
        "from the north",
        "out of the west",
        "up the $river",
        "without a sound",
    ),
    "one_evening": (
        "One evening",
        "One night",
        "That night",
        "At noon",
        "Before dawn",
        "On the last day of <season>",
    ),
    "sky": ("green", "black", "the colour of iron", "yellow as an old bruise", "white", "violet"),
    "metal": ("iron", "copper", "salt", "smoke", "rain"),
    "clouds": ("mountains", "a second village", "towers", "sleeping cattle", "a wall", "ships"),
    "wind": ("turned", "rose", "dropped", "howled in the chimney", "tore at the roof", "blew out the light"),
    "thunder": (
        "thunder rolled over the $river",
        "it thundered behind the $hill",
        "far away it began to thunder",
        "the windows began to hum",
        "the first flash lit the $place",
    ),
    # What the children do.
    "deed": (
        "$hero took the $thing and ran to the $place, and $friend ran after @him.",
        "$hero wanted to go home, but $friend had left the $thing in the $place.",
        "$hero and $friend carried the $thing up the $hill while $third <watched>.",
        "<roll>",
        "$hero tied the $thing to the roof, and $friend held @him by the coat.",
        "@She gave the $thing to $friend, and $friend gave it to $third, and $third <dropped> it.",
    ),
    "roll": (
        "$hero carried the $thing, $friend carried <a_load>, and $third carried <a_load>.",
        "$hero went first, $friend went second, and $third came last with the $thing.",
        "$hero counted the steps, $friend counted the windows, and $third counted the <counted>.",
        "$hero was afraid of the dark, $friend was afraid of the water, and $third was afraid of nothing.",
        "$hero climbed up, $friend climbed after @him, and $third waited by the door.",
    ),
    "watched": ("watched", "sang", "slept", "kept the door", "counted the seconds", "looked at the sky"),
    "dropped": ("dropped", "hid", "broke", "kept", "kissed", "lost"),
    "a_load": (
        "a blanket",
        "the bread",
        "an axe",
        "nothing",
        "the candles",
        "a bottle of oil",
        "a heavy stone",
    ),
    "counted": ("seconds", "sheep", "stars", "boats", "birds"),
    "river_deed": (
        "They built a boat from <boat> and called it the $thing.",
        "They wanted to cross the $river before the <others> did.",
        "$friend had seen a light in the $place, and $hero wanted to know whose it was.",
        "<one_evening> $third found a $thing in the mud of the $river.",
        "$hero could swim, $friend could row, and $third could <talent>.",
    ),
    "boat": ("an old door", "two barrels", "reeds", "driftwood", "the roof of a shed"),
    "others": ("soldiers", "others", "geese", "winter", "ice"),
    "talent": ("whistle", "sing", "read the clouds", "shout very loud", "only sleep"),
    "climb": (
        "$hero climbed <steps> steps with the $thing in @her hand, and $friend followed @him.",
        "@She took the $thing and went out to look for $friend.",
        "The door of the $place was open, so $hero went in and lit the <light>.",
        "@She tied $friend to the door and climbed the $hill alone.",
    ),
    "steps": ("ninety", "a hundred", "two hundred", "too many", "thirty-nine"),
    "light": ("lamp", "candle", "fire", "lantern", "stove"),
    "night_watch": (
        "$hero sat at the window and did not sleep, and $friend did not sleep either.",
        "All night @she kept the <light> burning for the boats on the $river.",
        "@She put the $thing on the sill and waited, with $friend on @her knees.",
        "$hero counted the seconds between light and sound: <seconds>.",
    ),
    "seconds": (
        "five, four, three",
        "nine, then seven, then two",
        "ten, then six, then none",
        "three, two, one",
    ),
    "search": (
        "<one_evening> the $thing was gone.",
        "<one_evening> $friend did not come home.",
        "<one_evening> $hero could not find the $thing that @her <mother> had left @him.",
        "<one_evening> $friend ran away over the $hill, and nobody but $hero went to look.",
    ),
    "mother": ("mother", "father", "grandmother", "uncle", "teacher"),
    "found": (
        "@She looked <looked>, and <looked>, and at last found $friend asleep in the $place.",
        "@She called the name of $friend three times: $friend, $friend, $friend!",
        "At last @she found a <colour> stone, and under the stone lay the $thing.",
        "In the sand of the $hill @she found <fulgurite>.",
        "Down by the $river @she heard $friend, and there, in the reeds, lay the $thing.",
    ),
    "looked": (
        "in the barn",
        "behind the $place",
        "under the bed",
        "in the well",
        "along the $river",
        "on the roof",
    ),
    "fulgurite": (
        "a root of glass, made by lightning",
        "a thin glass pipe where the lightning had gone in",
        "a branch of glass, as long as @her arm",
    ),
    # What they say.
    "talk": (
        '"<are_you> afraid, $friend?" asked $hero. "<answer>," said $friend.',
        '"Come down, $hero!" called $friend. "<answer>," said $hero.',
        '"Who has the $thing?" asked $third. "Ask $hero," said $friend. "Ask $friend," said $hero.',
        '"I can see the $river," said $hero. "I can see <seen>," said $friend. $third saw nothing.',
        '"When I count to three, $friend," said $hero, "you <run>, and $third will <run> too."',
    ),
    "are_you": ("Are you", "Were you ever", "Why are you"),
    "answer": (
        "Not yet",
        "A little",
        "Only of the $animal",
        "Only when it is quiet",
        "Ask me tomorrow",
        "Look up",
        "Never",
    ),
    "seen": ("the sea", "the end of the road", "two boats", "a light", "tomorrow"),
    "run": ("run", "jump", "let go", "shout", "close your eyes"),
    "talk_after": (
        '"You could have called me," said $hero to $friend, who said nothing.',
        '"There you are, $friend," said $hero, and wept a little.',
        '"We will not tell anybody, $friend," said $hero.',
        '"It is late, $friend," said $hero. "The $place is waiting."',
    ),
    # What the lightning does.
    "strike": (
        "Then lightning struck the $place, and for one second <noon>.",
        "Lightning ran down the <runway> of the $place and into the ground.",
        "There was a flash, and a crack like <crack>, and the $thing in the hand of $hero began to <glow>.",
        "The lightning struck the sand beside $friend, and the sand turned to glass.",
        "Twice it struck the $hill, and once, softly, the $thing.",
        "The flash was so bright that $hero saw $friend with closed eyes.",
    ),
    "noon": (
        "it was noon",
        "everything was blue",
        "nobody had a shadow",
        "all the bells rang",
        "the rain stood still",
    ),
    "runway": ("roof", "chain", "wall", "rope", "stairs", "copper wire"),
    "crack": ("a falling tree", "a broken plate", "a door", "a whip", "the end of the world"),
    "glow": ("glow", "sing", "burn", "hum", "shine"),
    "after": (
        "When it was over, $hero looked for $friend, and $friend was <standing>.",
        "Nobody was hurt, but the $place <lost>.",
        "In the morning they dug in the sand and found <fulgurite>.",
        "After that the $animal would not go near the $place.",
        "Where it had struck, $hero found <fulgurite>.",
        "$friend laughed first, and then $hero laughed too.",
        "It smelled of <metal>, and the $river was full of <floating>.",
    ),
    "standing": (
        "standing in the door",
        "still holding the $thing",
        "fast asleep",
        "wet but happy",
        "counting fingers",
    ),
    "lost": (
        "had lost its roof",
        "was leaning a little more",
        "had no door any more",
        "was black on one side",
        "still hummed",
    ),
    "floating": ("leaves", "apples", "stars", "boards", "hats"),
    "shelter": (
        "They ran to the $place and shut the door, $hero first and $friend last.",
        "$hero held the $thing over $friend, and the rain ran down @her sleeves.",
        "They slept in the $place, with the $animal between $hero and $friend.",
        "Under the roof of the $place it was dry, and $hero lit the <light>.",
    ),
    # How it ends.
    "ending": (
        "@She kept it all @her life, and on clear days it <shone>.",
        "Since then the $place is called the $place of $hero.",
        "And if you go to $river today, you can still <still>.",
        "$hero and $friend never spoke of it again.",
        "That is why the people of $river <custom>.",
        "And $friend? $friend slept until noon.",
        "Then $hero went home, and $friend went with @him.",
        "$hero put the $thing back where it belonged.",
        "The $river went on to the sea, as it always does.",
    ),
    "shone": ("shone", "hummed", "was warm", "smelled of rain", "pointed north"),
    "still": ("see the mark", "hear it hum", "find glass in the sand", "ask for $hero", "ring the bell"),
    "custom": (
        "count after every flash",
        "leave a light in the window",
        "name their boats $hero",
        "carry glass on a string",
    ),
}

STORIES = Grammar(RULES, VALUES)
WORDS: tuple[str, ...] = tuple(
    sorted(
        {
            word
            for texts in RULES.values()
            for text in texts
            for word in re.findall(r"(?<![\w<$@])[a-z]{3,}(?![\w>])", text)
        }
    )
)
"""The words that the stories are made of, without what stands in slots."""
