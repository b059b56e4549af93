"""What several layers unfold into: a few marked layers each."""
