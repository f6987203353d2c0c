"""A mail server that delivers to a folder, a file each: `mail_sink.py [HOST:]PORT FOLDER`. Standard library only."""

import asyncio
import pathlib
import sys
import time


async def talk(reader, writer, folder):
    async def say(text):
        writer.write(text.encode() + b"\r\n")
        await writer.drain()

    await say("220 sink")
    data = None
    while line := await reader.readline():
        if data is not None:
            if line.rstrip(b"\r\n") != b".":
                data.append(line.removeprefix(b".") if line.startswith(b"..") else line)
                continue
            # Whole under its name, or not there.
            part = folder / f"{time.time_ns()}.part"
            part.write_bytes(b"".join(data))
            part.rename(part.with_suffix(".eml"))
            data = None
            print("mail taken", flush=True)
            await say("250 taken")
            continue
        verb = line.split()[0].upper() if line.split() else b""
        if verb == b"DATA":
            data = []
            await say("354 go on")
        elif verb == b"QUIT":
            await say("221 bye")
            break
        else:
            await say("250 ok")
    writer.close()


async def main(address, folder):
    host, _, port = address.rpartition(":")
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    server = await asyncio.start_server(lambda r, w: talk(r, w, folder), host or "127.0.0.1", int(port))
    print(f"mail sink on {address}, mails in {folder}", flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    try:
        asyncio.run(main(*sys.argv[1:]))
    except KeyboardInterrupt:
        pass
