"""raftkv without asyncio. Needs a cluster: `raftkv up` or `make up`."""

import sys

import raftkv


def main(endpoints: str) -> None:
    with raftkv.Client(endpoints, timeout=5.0) as kv:
        try:
            kv.put("job:1", b"waiting", if_version=raftkv.ABSENT)
        except raftkv.ConditionFailed:
            print("the job exists already")

        if kv.cas("job:1", expected=b"waiting", value=b"taken"):
            print("the job is ours")

        try:
            kv.put("job:1", b"done")
        except raftkv.NotApplied as error:
            print("surely not written:", error)
        except raftkv.OutcomeUnknown as error:
            print("may be written, a read tells:", error)

        record = kv.get("job:1")
        print(record.value if record else None)
        kv.delete("job:1")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:7401,127.0.0.1:7402,127.0.0.1:7403")
