from headrace.client import AsyncClient as AsyncClient
from headrace.client import Client as Client
from headrace.launch import ServeError as ServeError
from headrace.launch import Server as Server
from headrace.launch import serve as serve
from headrace.runtimes.python import model as model

__version__: str
