"""The clients: asyncio first, a synchronous one on top of it."""
