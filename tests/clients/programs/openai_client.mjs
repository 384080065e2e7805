// OpenAI's client for JavaScript: as the programs in Python, with the same operations.
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [url, key, model, , packages] = process.argv.slice(2);
const { default: OpenAI } = await import(pathToFileURL(createRequire(`${packages}/`).resolve("openai")));
const isStub = model === "stub";
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: key, maxRetries: 0, timeout: 120_000 });
const chat = { model, messages: [{ role: "user", content: "What is the capital of France? Answer in one sentence." }], max_tokens: 48, temperature: 0 };
const weather = {
  type: "function",
  function: {
    name: "weather",
    description: "The weather in a city.",
    parameters: { type: "object", properties: { city: { type: "string", maxLength: 20 } }, required: ["city"] },
  },
};
const city = {
  type: "object",
  properties: { city: { type: "string", maxLength: 20 }, large: { type: "boolean" } },
  required: ["city", "large"],
  additionalProperties: false,
};
const answers = (text) => assert(text && (isStub || text.includes("Paris")), text);
const all = async (stream) => {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return chunks;
};

const operations = {
  models: async () => {
    assert((await all(await client.models.list())).some((one) => one.id === model));
  },
  chat: async () => {
    answers((await client.chat.completions.create(chat)).choices[0].message.content);
  },
  stream: async () => {
    const chunks = await all(await client.chat.completions.create({ ...chat, stream: true }));
    answers(chunks.map((chunk) => chunk.choices[0].delta.content ?? "").join(""));
  },
  "stream with usage": async () => {
    const asked = { ...chat, stream: true, stream_options: { include_usage: true } };
    const chunks = await all(await client.chat.completions.create(asked));
    assert(chunks.at(-1).usage.completion_tokens > 0);
  },
  tools: async () => {
    const answer = await client.chat.completions.create({ ...chat, tools: [weather], tool_choice: "required" });
    assert.equal(answer.choices[0].message.tool_calls[0].function.name, "weather");
  },
  "JSON schema": async () => {
    const response_format = { type: "json_schema", json_schema: { name: "c", schema: city, strict: true } };
    const answer = await client.chat.completions.create({ ...chat, response_format });
    assert.deepEqual(Object.keys(JSON.parse(answer.choices[0].message.content)).sort(), ["city", "large"]);
  },
  "several answers": async () => {
    assert.equal((await client.chat.completions.create({ ...chat, n: 2 })).choices.length, 2);
  },
  completions: async () => {
    assert((await client.completions.create({ model, prompt: "One, two, three,", max_tokens: 4 })).choices[0].text);
  },
  embeddings: async () => {
    const input = ["a cat", "a dog"];
    const usual = await client.embeddings.create({ model, input }); // in base64
    const plain = await client.embeddings.create({ model, input, encoding_format: "float" });
    for (const [i, one] of usual.data.entries()) {
      assert.equal(one.embedding.length, plain.data[i].embedding.length);
      assert(one.embedding.every((x, j) => Math.abs(x - plain.data[i].embedding[j]) < 1e-6));
    }
  },
  errors: async () => {
    await assert.rejects(client.chat.completions.create({ ...chat, model: "" }), OpenAI.NotFoundError);
    const other = client.withOptions({ apiKey: "hr_wrong" });
    await assert.rejects(other.chat.completions.create(chat), OpenAI.AuthenticationError);
  },
  cancel: async () => {
    const more = isStub ? { stub: { tokens: 1000, pause_s: 0.02 } } : {};
    const stream = await client.chat.completions.create({ ...chat, max_tokens: 900, stream: true, ...more });
    for await (const _ of stream) break; // ends the request
    answers((await client.chat.completions.create(chat)).choices[0].message.content);
  },
  "raw response": async () => {
    const { data, response } = await client.chat.completions.create(chat).withResponse();
    assert(response.headers.get("x-request-id"));
    answers(data.choices[0].message.content);
  },
};

for (const [operation, check] of Object.entries(operations)) {
  let error = "";
  try { await check(); } catch (thrown) { error = String(thrown.stack ?? thrown); }
  console.log(JSON.stringify({ operation, error }));
}
