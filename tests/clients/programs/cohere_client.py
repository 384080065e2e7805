"""Cohere's client."""

import cohere

from tests.clients.programs.operations import KEY, RANKER, URL, operation, refusal, run

DOCUMENTS = ["berlin in", "smith", "a b"]


@operation("rerank v1")
def rerank_v1() -> None:
    client = cohere.Client(api_key=KEY, base_url=URL, client_name="test")
    answer = client.rerank(model=RANKER, query="anna", documents=DOCUMENTS, top_n=2)
    check(answer.results)


@operation("rerank v2")
def rerank_v2() -> None:
    client = cohere.ClientV2(api_key=KEY, base_url=URL, client_name="test")
    check(client.rerank(model=RANKER, query="anna", documents=DOCUMENTS, top_n=2).results)


@operation("errors")
def errors() -> None:
    client = cohere.ClientV2(api_key="hr_wrong", base_url=URL, client_name="test")
    asked = {"model": RANKER, "query": "anna", "documents": DOCUMENTS}
    refusal(lambda: client.rerank(**asked), "UnauthorizedError")


def check(results: list[cohere.V2RerankResponseResultsItem]) -> None:
    """Two of three documents, the best first."""
    assert len(results) == 2
    assert results[0].relevance_score >= results[1].relevance_score
    assert {result.index for result in results} < {0, 1, 2}


run()
