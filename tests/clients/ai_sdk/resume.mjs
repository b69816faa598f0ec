// What a page does with the AI SDK's transports, on a command line: resume a chat, and print each chunk as it comes.
// Usage: node resume.mjs default|workflow BASE CHAT [START_INDEX]; the last line sums up.

import { DefaultChatTransport, readUIMessageStream } from "ai";
import { WorkflowChatTransport } from "@workflow/ai";

const [kind, base, chatId, startIndex] = process.argv.slice(2);
const seen = { status: [], tail: [], end: null };

async function watched(url, options) {
  const response = await fetch(url, options);
  seen.status.push(response.status);
  seen.tail.push(response.headers.get("x-workflow-stream-tail-index"));
  return response;
}

const options = { api: `${base}/api/chat`, fetch: watched, onChatEnd: (end) => (seen.end = end) };
const transport = kind === "default" ? new DefaultChatTransport(options) : new WorkflowChatTransport(options);
const request = { chatId, ...(startIndex === undefined ? {} : { startIndex: Number(startIndex) }) };
const print = (value) => process.stdout.write(`${JSON.stringify(value)}\n`);

const stream = await transport.reconnectToStream(request);
let message = null;
if (stream !== null) {
  const [shown, kept] = stream.tee();
  const reading = (async () => {
    for await (const chunk of shown) print({ chunk });
  })();
  // A message is put together from its first chunk only; a page that resumes in the middle has the rest already.
  if (request.startIndex === undefined || request.startIndex === 0) {
    for await (const state of readUIMessageStream({ stream: kept })) message = state;
  }
  await reading;
}
print({ none: stream === null, message, ...seen });
