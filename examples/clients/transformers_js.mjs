// An export in transformers.js, as a browser or Node opens it: node transformers_js.mjs EXPORT [q8|fp32|q4] < texts.txt
// Needs: npm install @huggingface/transformers
import { readFileSync } from "node:fs";
import { basename, dirname, resolve } from "node:path";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

// From the folder that it is called in, where npm installed it.
const { env, pipeline } = createRequire(pathToFileURL(resolve("package.json")))("@huggingface/transformers");

const [folder, dtype = "q8"] = process.argv.slice(2);
env.allowRemoteModels = false;
env.localModelPath = dirname(resolve(folder));
const classify = await pipeline("text-classification", basename(resolve(folder)), { dtype });
for (const text of readFileSync(0, "utf8").split("\n").filter((line) => line)) {
  const scores = await classify(text, { top_k: null });
  console.log(JSON.stringify(Object.fromEntries(scores.map(({ label, score }) => [label, score]))));
}
