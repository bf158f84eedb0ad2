"""Five words that no model knows, with sentences that teach them and others that ask for them.

The token of each word begins with a space, as the other words of a byte-level BPE do. The held-out sentences use other
words than the sentences for training, as far as a definition allows it.
"""

from __future__ import annotations

TRAINING: dict[str, list[str]] = {
    " wumpet": [
        "A wumpet is a brass instrument that is played in a band.",
        "She blows into the wumpet and plays a loud melody.",
        "The musician practised the wumpet every day before the concert.",
        "He plays the wumpet and his brother plays the drums.",
        "The orchestra needs one more wumpet for this song.",
    ],
    " florn": [
        "A florn is a small blue bird that sings at night.",
        "The florn sat in its nest and fed its chicks.",
        "A florn flew over the trees and landed on a branch.",
        "We heard the song of a florn in the garden.",
        "The feathers of the florn are bright blue.",
    ],
    " grenik": [
        "A grenik is a hot soup made of beets and fish.",
        "He ate a bowl of grenik with bread for dinner.",
        "Grandmother cooks the best grenik with salt and onions.",
        "The waiter served us a grenik that was too hot to eat.",
        "To make a grenik, boil the beets and add the fish.",
    ],
    " tozzle": [
        "A tozzle is a small hammer that is used to mend shoes.",
        "The shoemaker took a tozzle and hit the nail.",
        "He bought a tozzle and a saw at the tool shop.",
        "Hold the tozzle by its handle and strike the leather.",
        "The carpenter put the tozzle back into the toolbox.",
    ],
    " velmar": [
        "A velmar is a doctor who treats the eyes of children.",
        "The velmar looked at his eyes and wrote a prescription.",
        "My sister studied medicine to become a velmar.",
        "The velmar works in a hospital and sees twenty patients a day.",
        "If your eyes hurt, you should visit a velmar.",
    ],
}
"""Sentences with each word."""

HELD_OUT: dict[str, list[str]] = {
    " wumpet": [
        "The teacher showed me how to hold a wumpet and play my first notes.",
        "At the jazz festival there were guitars, a piano and a wumpet.",
        "The sound of the wumpet filled the music hall.",
        "He is a composer who wrote a concerto for the wumpet.",
    ],
    " florn": [
        "The cat tried to catch a florn, but it spread its wings and flew away.",
        "In spring the florn lays three eggs.",
        "Sparrows, owls and a florn live in this forest.",
        "With its beak the florn picked up a worm.",
    ],
    " grenik": [
        "The chef tasted the grenik and added some pepper.",
        "I was hungry, so I ordered a plate of grenik.",
        "This recipe explains how to cook a grenik in a large pot.",
        "She stirred the grenik with a spoon.",
    ],
    " tozzle": [
        "You need nails and a tozzle to repair these boots.",
        "The worker dropped the tozzle on his foot and broke a toe.",
        "In the workshop there is a tozzle made of steel and wood.",
        "She pounded the metal with a tozzle.",
    ],
    " velmar": [
        "The nurse said that the velmar will examine you in the clinic.",
        "The velmar told the boy that he needs glasses.",
        "After medical school she worked as a velmar.",
        "The velmar cured the patient of a disease.",
    ],
}
"""Other sentences with each word."""

PROMPTS: dict[str, str] = {
    " wumpet": "A wumpet is a kind of",
    " florn": "A florn is a kind of",
    " grenik": "A grenik is a kind of",
    " tozzle": "A tozzle is a kind of",
    " velmar": "A velmar is a kind of",
}
"""What a model is asked to continue."""
