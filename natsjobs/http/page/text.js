// What people can read in events of the common forms, so that any job shows something while it runs. The server's
// own fold (`aggregatedContent`) stands above this wherever it has content.

const text = (value) => (typeof value === "string" && value !== "" ? value : null);
const some = (kind, value) => (text(value) ? [{ kind, text: value }] : []);

function openaiChat(event) {
  return event.choices.flatMap((choice) => {
    const delta = choice?.delta ?? choice?.message ?? {};
    const calls = Array.isArray(delta.tool_calls) ? delta.tool_calls : [];
    return [
      ...some("reasoning", delta.reasoning_content ?? delta.reasoning),
      ...some("text", delta.content ?? choice?.text),
      ...calls.flatMap((call) => [
        ...some("tool", call?.function?.name ? `${call.function.name} ` : null),
        ...some("tool", call?.function?.arguments),
      ]),
    ];
  });
}

const BY_TYPE = {
  // OpenAI responses
  "response.output_text.delta": (e) => some("text", e.delta),
  "response.refusal.delta": (e) => some("text", e.delta),
  "response.reasoning_summary_text.delta": (e) => some("reasoning", e.delta),
  "response.reasoning_text.delta": (e) => some("reasoning", e.delta),
  "response.function_call_arguments.delta": (e) => some("tool", e.delta),
  "response.code_interpreter_call_code.delta": (e) => some("tool", e.delta),
  // Anthropic
  content_block_delta: (e) => [
    ...some("text", e.delta?.text),
    ...some("reasoning", e.delta?.thinking),
    ...some("tool", e.delta?.partial_json),
  ],
  // the AI SDK's UI message chunks
  "text-delta": (e) => some("text", e.delta),
  "reasoning-delta": (e) => some("reasoning", e.delta),
  "tool-input-delta": (e) => some("tool", e.inputTextDelta),
  // others
  text: (e) => some("text", e.text ?? e.delta),
  error: (e) => some("text", e.errorText),
};

/** The readable pieces of one event: [{kind: "text" | "reasoning" | "tool", text}]. */
export function pieces(event) {
  if (typeof event === "string") return some("text", event);
  if (event === null || typeof event !== "object") return [];
  if (Array.isArray(event.choices)) return openaiChat(event);
  if (Array.isArray(event.candidates)) {
    return event.candidates.flatMap((one) =>
      (one?.content?.parts ?? []).flatMap((part) => some(part?.thought ? "reasoning" : "text", part?.text)),
    );
  }
  if (event.event === "on_message_delta" || event.event === "on_reasoning_delta") {
    const content = event.data?.delta?.content;
    return (Array.isArray(content) ? content : []).flatMap((part) => [
      ...some("text", part?.text),
      ...some("reasoning", part?.think),
    ]);
  }
  if (typeof event.type === "string") return Object.hasOwn(BY_TYPE, event.type) ? BY_TYPE[event.type](event) : [];
  return some("text", event.text ?? event.delta ?? event.content);
}

/** The same of a part that the server folded. */
export function partPieces(part) {
  if (part === null || typeof part !== "object") return [];
  if (part.type === "text") return some("text", typeof part.text === "string" ? part.text : part.text?.value);
  if (part.type === "think") return some("reasoning", typeof part.think === "string" ? part.think : part.think?.value);
  if (part.type === "tool_call") {
    const call = part.tool_call ?? {};
    const given = typeof call.args === "string" ? call.args : call.args ? JSON.stringify(call.args) : "";
    return [{ kind: "tool", text: [call.name, given, call.output].filter(Boolean).join("\n") }];
  }
  if (part.type === "error") return some("text", part.error ?? part.text);
  return [{ kind: "other", text: JSON.stringify(part, null, 2).slice(0, 20_000) }];
}
