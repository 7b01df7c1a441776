"""Everything at once: an embedded broker, the service, photographs, and a page of what came of them."""
