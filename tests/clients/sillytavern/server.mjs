// SillyTavern's own routes for images, without the rest of its server: its page calls them, and they call an API.
import { fileURLToPath } from 'node:url';
import express from 'express';

const place = (path) => new URL(`./node_modules/sillytavern/${path}`, import.meta.url);
const { setConfigFilePath } = await import(place('src/util.js'));
setConfigFilePath(fileURLToPath(place('default/config.yaml')));
const { router } = await import(place('src/endpoints/stable-diffusion.js'));

const app = express();
app.use(express.json({ limit: '100mb' }));
app.use('/api/sd', router);
const server = app.listen(0, '127.0.0.1', () => console.log(`listening on ${server.address().port}`));
