"""Which scheme each layer has, within a budget."""

from tfquant.search.auto import AutoResult, Step, autoquantize
from tfquant.search.budget import Budget
from tfquant.search.report import Candidate, Promise, SearchResult
from tfquant.search.search import search

__all__ = [
    "AutoResult",
    "Budget",
    "Candidate",
    "Promise",
    "SearchResult",
    "Step",
    "autoquantize",
    "search",
]
