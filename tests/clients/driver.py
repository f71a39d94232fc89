"""What the Python scripts share: the loop over commands, and the facts that a client saw."""

import asyncio
import json
import sys
import traceback


class Driver:
    """A client; a command is a coroutine of the same name with the command's arguments."""

    def __init__(self, url):
        self.url = url
        self.facts = []
        self.news = asyncio.Condition()
        self.typing_users = {}

    async def saw(self, what, **members):
        async with self.news:
            self.facts.append({"what": what, **members})
            self.news.notify_all()

    async def saw_typing(self, room_id, users):
        before, now = self.typing_users.get(room_id, set()), set(users)
        self.typing_users[room_id] = now
        for user_id in now - before:
            await self.saw("typing", room_id=room_id, user_id=user_id, typing=True)
        for user_id in before - now:
            await self.saw("typing", room_id=room_id, user_id=user_id, typing=False)

    async def saw_message(self, room_id, event_id, sender, content):
        relation = content.get("m.relates_to") or {}
        if relation.get("rel_type") == "m.replace":
            body = content["m.new_content"]["body"]
            await self.saw("edit", room_id=room_id, event_id=relation["event_id"], sender=sender, body=body)
        else:
            await self.saw("message", room_id=room_id, event_id=event_id, sender=sender, body=content["body"])

    async def wait(self, fact):
        async with self.news:
            while True:
                for index, seen in enumerate(self.facts):
                    if fact.items() <= seen.items():
                        return self.facts.pop(index)
                await self.news.wait()

    async def close(self):
        """Ends what runs in the background."""


async def run(driver):
    reader = asyncio.StreamReader(limit=1 << 20)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        arguments = json.loads(line)
        try:
            answer = {"ok": await getattr(driver, arguments.pop("command"))(**arguments)}
        except Exception as error:  # whatever it is, the test is told
            answer = {"error": f"{error!r}\n{traceback.format_exc()}"}
        print(json.dumps(answer), flush=True)
    await driver.close()
