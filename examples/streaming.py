"""Words as they are made: server-sent events from a very small language model (which word follows which).

    fal run examples/streaming.py::Storyteller
    curl -N -X POST URL_THAT_IT_PRINTS/stream -H "Content-Type: application/json" -d '{"words": 40}'

Each event is one JSON object; the last one holds the whole text. The plain URL answers with the text at once.
"""

import asyncio
import json
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator

import fal
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

# The opening of "Alice's Adventures in Wonderland" (Lewis Carroll, 1865).
TEXT = """
Alice was beginning to get very tired of sitting by her sister on the bank, and of having nothing to do: once or twice
she had peeped into the book her sister was reading, but it had no pictures or conversations in it. So she was
considering in her own mind, as well as she could, for the hot day made her feel very sleepy and stupid, whether the
pleasure of making a daisy-chain would be worth the trouble of getting up and picking the daisies, when suddenly a White
Rabbit with pink eyes ran close by her. There was nothing so very remarkable in that; nor did Alice think it so very
much out of the way to hear the Rabbit say to itself, "Oh dear! Oh dear! I shall be late!" But when the Rabbit actually
took a watch out of its waistcoat-pocket, and looked at it, and then hurried on, Alice started to her feet, for it
flashed across her mind that she had never before seen a rabbit with either a waistcoat-pocket, or a watch to take out
of it, and burning with curiosity, she ran across the field after it.
"""


class Input(BaseModel):
    words: int = Field(default=30, ge=1, le=500)
    seed: int | None = None
    pause: float = Field(default=0.05, ge=0, le=1, description="Seconds between two words.")


class Output(BaseModel):
    text: str


class Storyteller(fal.App, keep_alive=300, max_multiplexing=8):
    machine_type = "XS"

    def setup(self) -> None:
        self.followers: dict[str, list[str]] = defaultdict(list)
        words = TEXT.split()
        for word, follower in zip(words, words[1:] + words[:1], strict=True):
            self.followers[word].append(follower)

    @fal.endpoint("/stream")
    async def stream(self, request: Input) -> StreamingResponse:
        return StreamingResponse(self.events(request), media_type="text/event-stream")

    @fal.endpoint("/")
    async def tell(self, request: Input) -> Output:
        return Output(text=" ".join(self.story(request)))

    async def events(self, request: Input) -> AsyncIterator[str]:
        told = []
        for word in self.story(request):
            told.append(word)
            yield f"data: {json.dumps({'word': word})}\n\n"
            await asyncio.sleep(request.pause)
        yield f"data: {json.dumps({'text': ' '.join(told)})}\n\n"

    def story(self, request: Input) -> Iterator[str]:
        chance = random.Random(request.seed)
        word = "Alice"
        for _ in range(request.words):
            yield word
            word = chance.choice(self.followers[word])
