"""What each kind of client says and expects, without sockets: frames in, requests out, and back.

wam.py        our own clients, connections that offered the sub-protocol wam.v1
plain.py      every other connection: the first frame, detection, text and typed errors
cosmos.py     cosmos-framework's RoboLab server: `action`
openpi.py     openpi's DROID and LIBERO clients: `actions`
roboarena.py  RoboArena and DreamZero: `endpoint`, six metadata keys
"""
