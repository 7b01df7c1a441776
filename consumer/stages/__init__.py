"""The stages, one verb a file, in the order in which an image passes them: parse, fetch, decode, batch, infer,
publish, commit. No vendor library is imported here."""
