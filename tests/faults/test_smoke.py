from faults.lab import Lab, Case, interrupt
def test_x(tmp_path):
    lab = Lab(tmp_path)
    row = interrupt(lab, Case("save.commit.after#2=kill", -9, 2))
    print(row)
    assert row.passed, row
    row = interrupt(lab, Case("evaluate.inside#3=sigterm", 5, 0))
    print(row)
    assert row.passed, row
    row = interrupt(lab, Case("forward#8=hang", -9, 2, "hangs in phase forward", ("run.hang_timeout_s=5",)))
    print(row)
    assert row.passed, row
