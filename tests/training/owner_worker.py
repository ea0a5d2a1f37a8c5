"""A process that owns a folder until it is killed: python owner_worker.py FOLDER. It writes a line once it does."""

import sys
import time

from ebmscale.errors import EbmscaleError
from ebmscale.storage import Storage
from ebmscale.training.owner import Lease


def main() -> None:
    lease = Lease(Storage.at(sys.argv[1]))
    try:
        lease.take()
    except EbmscaleError as error:
        print(f"refused: {error}", flush=True)
        return
    print("owns", flush=True)
    while True:
        time.sleep(60)


if __name__ == "__main__":
    main()
