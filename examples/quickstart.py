"""raftkv from asyncio. Needs a cluster: `raftkv up` or `make up`."""

import asyncio
import sys

import raftkv


async def main(endpoints: str) -> None:
    async with raftkv.AsyncClient(endpoints, timeout=5.0) as kv:
        written = await kv.put("user:1", b"ada", ttl=30)
        print("version", written.version)

        record = await kv.get("user:1")
        assert record is not None
        print(record.key, record.value)

        # Only if nobody has changed it since it was read.
        await kv.put("user:1", b"eve", if_version=record.version)
        try:
            await kv.put("user:1", b"mallory", if_version=record.version)
        except raftkv.ConditionFailed as error:
            print("changed since:", error)  # it names the key, the version expected and the one found

        swapped = await kv.cas("user:1", expected=b"eve", value=b"bob")
        print("swapped:", bool(swapped), "version", swapped.version)

        # What is outstanding at the same time shares messages: a thousand writes take a few round trips.
        await asyncio.gather(*(kv.put(f"number:{i}", str(i)) for i in range(1000)))

        print("was there:", await kv.delete("user:1"))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:7401,127.0.0.1:7402,127.0.0.1:7403"))
