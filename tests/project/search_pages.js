// Searches a built site by the theme's own worker, outside of a browser:
// node search_pages.js SITE '["text", ...]' prints for each text the addresses of the
// pages found, best first, each as the list of its sections.
const fs = require("fs"), path = require("path"), vm = require("vm");

const [site, texts] = [process.argv[2], JSON.parse(process.argv[3])];
const workers = path.join(site, "assets/javascripts/workers");
const [name] = fs.readdirSync(workers).filter((file) => /^search\..*\.js$/.test(file));
const index = JSON.parse(fs.readFileSync(path.join(site, "search/search_index.json")));

let receive, answered;
const worker = {
  console: console,
  addEventListener: (kind, listener) => { receive = listener; },
  postMessage: (message) => answered(message),
};
worker.self = worker;
vm.createContext(worker);
vm.runInContext(fs.readFileSync(path.join(workers, name), "utf8"), worker);

const SETUP = 0, QUERY = 2;
const ask = (type, data) => new Promise((resolve) => {
  answered = resolve;
  receive({data: {type: type, data: data}});
});

(async () => {
  await ask(SETUP, {...index, options: {suggest: false}});
  const found = {};
  for (const text of texts) {
    const {data} = await ask(QUERY, text);
    found[text] = data.items.map((page) => page.map((section) => section.location));
  }
  console.log(JSON.stringify(found));
})();
